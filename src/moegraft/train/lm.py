"""Language-model training on packed texts: pretraining, mid-training, routers on their own."""

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainingArguments

from moegraft.train.loop import ExactTrainer, OnStep, Prepare, Record, run, weights_digest
from moegraft.train.options import TrainOptions
from moegraft.train.router_loss import RouterLoss, Take, router_losses
from moegraft.train.text import IGNORED, Blocks, Order, check_weights, mixed_order

_NO_ROUTER_LOSS = RouterLoss()
_log = logging.getLogger(__name__)


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
        model: any causal model. Parameters without `requires_grad` stay. Documents of a block are
            kept apart where attention is all that mixes tokens; state-space layers see through.
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
            train_dataset=_Rows(list(sources.values()), order, apart),
            data_collator=_stack,
        )
        trainer.prepare, trainer.take = prepare, take
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


@torch.no_grad()
def keeps_apart(model: PreTrainedModel) -> bool:
    """Whether position ids that start again make `model` treat documents of a block separately.

    Tried out on eight tokens rather than looked up: state-space layers see through, and some
    implementations (gpt_oss in transformers 5.23) do not tell their attention.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return _told(model, False)
    was_training = model.training
    model.eval()
    embedding: Any = model.get_input_embeddings()
    device = embedding.weight.device
    ids = torch.arange(1, 9, device=device).repeat(2, 1)
    ids[1, :4] += 8  # two blocks whose first documents differ
    ids %= embedding.weight.shape[0]
    going_on = torch.arange(8, device=device).expand(2, 8)
    differences = []
    for positions in (going_on, going_on % 4):
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 4:].float()
        differences.append(float((logits[0] - logits[1]).abs().max()))
    model.train(was_training)
    return _told(model, differences[1] <= 0.05 * differences[0])


def _told(model: PreTrainedModel, apart: bool) -> bool:
    if not apart:
        _log.warning("%s: documents of one block see one another", type(model).__name__)
    return apart


def token_loss(
    model: Any, blocks: Blocks, rows: Sequence[int], *, apart: bool = True
) -> tuple[Tensor, Tensor]:
    """Sum of the next tokens' losses over some blocks, in float32 nats, and how many there are."""
    logits, labels = _logits(model, blocks, rows, apart)
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss, (labels != IGNORED).sum()


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
    inputs = {name: value.to(device) for name, value in _inputs(blocks, rows, apart).items()}
    labels = inputs.pop("labels")[:, 1:]
    return model(**inputs, use_cache=False).logits[:, :-1].float(), labels


class _LmTrainer(ExactTrainer):
    """Next-token loss without a cache, and the routers' losses on top."""

    take: Take | None = None

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
        # A cache, even an empty one, makes transformers ignore where documents begin.
        inputs = {**inputs, "use_cache": False}
        loss: Any = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if self.take is None:
            return loss
        extra = self.take(None)
        self._router_sum += float(extra.detach())
        self._router_count += 1
        is_scaled = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return loss + extra / (self.current_gradient_accumulation_steps if is_scaled else 1)

    def router_means(self) -> dict[str, float]:
        """Mean of the routers' losses since the last call."""
        if not self._router_count:
            return {}
        mean = torch.tensor(self._router_sum / self._router_count, device=self.args.device)
        self._router_sum, self._router_count = 0.0, 0
        return {"router_loss": float(self.accelerator.reduce(mean, "mean"))}  # pyright: ignore


def _arguments(options: TrainOptions, work: Path) -> dict[str, Any]:
    found = options.arguments(work) | {"train_sampling_strategy": "sequential"}
    if not found["gradient_checkpointing"]:  # off anyway; naming it prints a warning
        del found["gradient_checkpointing"]
    return found


class _Rows(Dataset):
    """Blocks in the order in which they are read."""

    def __init__(self, sources: Sequence[Blocks], order: Order, apart: bool) -> None:
        self._sources, self._order, self._apart = sources, order, apart

    def __len__(self) -> int:
        return len(self._order.rows)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        blocks = self._sources[self._order.sources[place]]
        row = int(self._order.rows[place])
        return {name: value[0] for name, value in _inputs(blocks, [row], self._apart).items()}


def _inputs(blocks: Blocks, rows: Sequence[int], apart: bool) -> dict[str, Tensor]:
    rows = [*rows]
    found = {"input_ids": blocks.ids[rows].long(), "labels": blocks.labels(rows)}
    return {**found, "position_ids": blocks.positions[rows].long()} if apart else found


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
