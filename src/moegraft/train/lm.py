"""Language-model training on packed texts: pretraining, mid-training, routers on their own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainingArguments

from moegraft.errors import RecipeError
from moegraft.train.apart import keeps_apart, packed_logits
from moegraft.train.loop import ExactTrainer, OnStep, Prepare, Record, run, weights_digest
from moegraft.train.options import TrainOptions
from moegraft.train.router_loss import RouterLoss, Take, router_losses
from moegraft.train.text import IGNORED, Blocks, Order, check_weights, mixed_order

_NO_ROUTER_LOSS = RouterLoss()


@dataclass(frozen=True, slots=True)
class LmResult:
    """Where a training ended."""

    num_steps: int
    num_tokens: int
    loss: float
    """Nats per token over the last logged steps, without the routers' losses."""
    validation: dict[str, float]
    """Nats per token by name, after the last step."""


def train_lm(
    model: PreTrainedModel,
    data: Blocks | Mapping[str, Blocks],
    options: TrainOptions,
    *,
    work: Path,
    weights: Mapping[str, float] | None = None,
    validation: Mapping[str, Blocks] | None = None,
    router: RouterLoss = _NO_ROUTER_LOSS,
    prepare: Prepare | None = None,
    on_step: OnStep | None = None,
) -> LmResult:
    """Train `model` in place to predict the next token of packed texts.

    The order of the data depends on sizes, weights and seed alone: two models see the same blocks
    at the same steps, on any number of processes. Called again with the same arguments after an
    interruption (kill -9 too), it goes on from the last checkpoint on the same trajectory; called
    again after the end, it loads the end. In float32 on one device, equal means bit for bit.

    Args:
        model: any causal model. Parameters without `requires_grad` stay. Documents of a block
            never see one another: where position ids do not suffice each is run by itself.
        data: blocks, or blocks by source.
        options: steps, batch (blocks a step), rate, seed. `save_every` decides how much an
            interruption costs.
        work: the training's own folder: `metrics.jsonl` and checkpoints.
        weights: share of each source; default: by size.
        validation: blocks by name, whose losses are recorded before the first step, every
            `eval_every` steps, and after the last.
        router: coefficients of the routers' losses; none by default, whatever the model's config
            says.
        prepare: called with the model and its optimizer, e.g. to freeze slices of parameters.
        on_step: told about progress.

    Raises:
        TrainDataError: no source, blocks of different lengths, or weights that do not fit.
        TrainingError: the loss or a gradient is not finite; the last checkpoint stays.
        RunError: `work` holds another training.
        IncompatibleError: router losses of a model without routers.
        RecipeError: several processes, and a model whose documents have to be run by themselves.
    """
    sources = {"text": data} if isinstance(data, Blocks) else dict(data)
    shares = check_weights(sources, weights)
    sizes = [len(blocks) for blocks in sources.values()]
    order = mixed_order(sizes, options.num_steps * options.batch, weights=shares, seed=options.seed)
    length = next(iter(sources.values())).length
    about = {
        "options": asdict(options),
        "data": {name: blocks.digest() for name, blocks in sources.items()},
        "weights": shares,
        "validation": {name: blocks.digest() for name, blocks in (validation or {}).items()},
        "router": router,
        "start": weights_digest(model),
    }
    with _training_config(model), _router(model, router) as take:
        apart = keeps_apart(model)
        trainer = _LmTrainer(
            model=model,
            args=TrainingArguments(**_arguments(options, work)),
            train_dataset=_Rows(list(sources.values()), order),
            data_collator=_stack,
        )
        if not apart and trainer.args.world_size > 1:
            raise RecipeError(
                f"{type(model).__name__} mixes the documents of a block, so each is run by itself, "
                "and that works in one process only"
            )
        trainer.prepare, trainer.take, trainer.apart = prepare, take, apart
        record = Record(
            work,
            tokens_per_step=options.batch * length,
            eval_every=options.eval_every,
            validate=(lambda: _validate(trainer, validation, apart)) if validation else None,
            extra=trainer.router_means,
            on_step=on_step,
        )
        rows = run(trainer, record, about)
    last = rows[-1]
    return LmResult(last["step"], last["tokens"], last["loss"], last.get("validation", {}))


def token_loss(
    model: Any, blocks: Blocks, rows: Sequence[int], *, apart: bool = True
) -> tuple[Tensor, Tensor]:
    """Sum of the next tokens' losses over some blocks, in float32 nats, and how many there are."""
    logits, labels = _logits(model, blocks, rows, apart)
    return _summed(logits, labels), (labels != IGNORED).sum()


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the losses, in float32."""
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )


@torch.no_grad()
def validation_loss(model: PreTrainedModel, blocks: Blocks, *, batch: int = 16) -> float:
    """Mean loss of the next token over `blocks`, in nats."""
    was_training = model.training
    model.eval()
    apart = keeps_apart(model)
    sums = [
        token_loss(model, blocks, range(start, min(start + batch, len(blocks))), apart=apart)
        for start in range(0, len(blocks), batch)
    ]
    model.train(was_training)
    return float(sum(loss.double() for loss, _ in sums) / sum(count for _, count in sums))


@torch.no_grad()
def block_losses(model: PreTrainedModel, blocks: Blocks, *, batch: int = 16) -> list[float]:
    """Mean loss of the next token in each of `blocks`, in nats."""
    was_training = model.training
    model.eval()
    apart = keeps_apart(model)
    found: list[float] = []
    for start in range(0, len(blocks), batch):
        rows = range(start, min(start + batch, len(blocks)))
        logits, labels = _logits(model, blocks, rows, apart)
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
        )
        found += (losses.double().sum(1) / (labels != IGNORED).sum(1)).tolist()
    model.train(was_training)
    return found


def _logits(model: Any, blocks: Blocks, rows: Sequence[int], apart: bool) -> tuple[Tensor, Tensor]:
    """Of every place of some blocks but the last, in float32, and the token that follows."""
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in _inputs(blocks, rows).items()}
    ids, positions, labels = (inputs[k] for k in ("input_ids", "position_ids", "labels"))
    counted = labels != IGNORED
    logits = packed_logits(model, ids, positions, apart=apart, counted=counted)
    return logits[:, :-1].float(), labels[:, 1:]


class _LmTrainer(ExactTrainer):
    """Next-token loss without a cache, and the routers' losses on top."""

    take: Take | None = None
    apart: bool = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._router_sum, self._router_count = 0.0, 0

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean over the step's tokens, plus the routers' losses averaged over its parts."""
        if not self.apart:
            return self._loss_of_documents(model, inputs, num_items_in_batch)
        # A cache, even an empty one, makes transformers ignore where documents begin.
        inputs = {**inputs, "use_cache": False}
        loss: Any = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if self.take is None:
            return loss
        return self._with_router_loss(loss, self.take(None), num_items_in_batch)

    def _with_router_loss(self, loss: Tensor, extra: Tensor, num_items_in_batch: Any) -> Tensor:
        self._router_sum += float(extra.detach())
        self._router_count += 1
        is_scaled = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return loss + extra / (self.current_gradient_accumulation_steps if is_scaled else 1)

    def _loss_of_documents(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any
    ) -> Tensor:
        """The same of documents that have to be run by themselves."""
        labels = inputs["labels"]
        counted = labels != IGNORED
        extras: list[tuple[Tensor, Tensor]] = []

        def keep(real: Tensor) -> None:
            if self.take is not None:
                extras.append((real.sum(), self.take(real)))

        ids, positions = inputs["input_ids"], inputs["position_ids"]
        logits = packed_logits(model, ids, positions, apart=False, counted=counted, after=keep)
        count = counted[:, 1:].sum() if num_items_in_batch is None else num_items_in_batch
        loss = _summed(logits[:, :-1].float(), labels[:, 1:]) / count
        if not extras:
            return loss
        total = sum(count * extra for count, extra in extras) / sum(count for count, _ in extras)
        return self._with_router_loss(loss, total, num_items_in_batch)  # pyright: ignore[reportArgumentType]

    def router_means(self) -> dict[str, float]:
        """Mean of the routers' losses since the last call."""
        if not self._router_count:
            return {}
        mean = torch.tensor(self._router_sum / self._router_count, device=self.args.device)
        self._router_sum, self._router_count = 0.0, 0
        return {"router_loss": float(self.accelerator.reduce(mean, "mean"))}  # pyright: ignore


def _arguments(options: TrainOptions, work: Path) -> dict[str, Any]:
    found = options.arguments(work) | {
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,  # not every model has a use for position ids
    }
    if not found["gradient_checkpointing"]:  # off anyway; naming it prints a warning
        del found["gradient_checkpointing"]
    return found


class _Rows(Dataset):
    """Blocks in the order in which they are read."""

    def __init__(self, sources: Sequence[Blocks], order: Order) -> None:
        self._sources, self._order = sources, order

    def __len__(self) -> int:
        return len(self._order.rows)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        blocks = self._sources[self._order.sources[place]]
        row = int(self._order.rows[place])
        return {name: value[0] for name, value in _inputs(blocks, [row]).items()}


def _inputs(blocks: Blocks, rows: Sequence[int]) -> dict[str, Tensor]:
    rows = [*rows]
    return {
        "input_ids": blocks.ids[rows].long(),
        "position_ids": blocks.positions[rows].long(),
        "labels": blocks.labels(rows),
    }


def _stack(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@torch.no_grad()
def _validate(
    trainer: _LmTrainer, validation: Mapping[str, Blocks], apart: bool
) -> dict[str, float]:
    """Losses by name; each process reads its share of the rows, all the same number of batches."""
    model: Any = trainer.model_wrapped
    args = trainer.args
    was_training = model.training
    model.eval()
    found = {}
    for name, blocks in validation.items():
        size = args.per_device_train_batch_size
        sums = torch.zeros(2, dtype=torch.float64, device=args.device)
        for start in range(0, len(blocks), size * args.world_size):
            first = start + size * args.process_index
            rows = range(first, min(first + size, len(blocks)))
            loss, count = token_loss(model, blocks, rows or [0], apart=apart)
            if rows:
                sums += torch.stack([loss.double(), count.double()])
        total = trainer.accelerator.reduce(sums, "sum")
        found[name] = float(total[0] / total[1])  # pyright: ignore
    model.train(was_training)
    return found


@contextmanager
def _training_config(model: PreTrainedModel) -> Iterator[None]:
    """Keep transformers' own load-balancing loss out: it is `router`'s to ask for."""
    before = getattr(model.config, "output_router_logits", None)
    if before:
        model.config.output_router_logits = False
    try:
        yield
    finally:
        if before:
            model.config.output_router_logits = before


@contextmanager
def _router(model: PreTrainedModel, loss: RouterLoss) -> Iterator[Take | None]:
    if not loss:
        yield None
        return
    with router_losses(model, loss) as take:
        yield take
