"""Train only some components of a checkpoint, such as its routers, and write what moved.

All other tensors are copied byte for byte, so they cannot differ. Losses are measured on text
that was held out, before and after; after means with the numbers as they are stored.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moegraft.bar.cost import sizes_of
from moegraft.bar.entries import produced
from moegraft.bar.route_data import RouteData
from moegraft.bar.write import write_model
from moegraft.checkpoint import Checkpoint
from moegraft.checkpoint.writer import Entry
from moegraft.config import STRICT
from moegraft.errors import BranchError, RecipeError
from moegraft.families import Key
from moegraft.runtime.hooks import routers
from moegraft.runtime.load import from_pretrained
from moegraft.runtime.probe import profile_texts
from moegraft.runtime.weights import DTYPES
from moegraft.train.freeze import Trainable, freeze
from moegraft.train.lm import train_lm, validation_loss
from moegraft.train.loop import OnStep
from moegraft.train.options import TrainOptions
from moegraft.train.router_loss import RouterLoss

PAPER_BATCH_TOKENS = 1_310_720
"""Of a step of the paper's router training (80 sequences of 16384)."""
PAPER_STEPS = 66
"""Of its 5 % sample, two epochs."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How to train; the defaults are the paper's router training."""

    __pydantic_config__: ClassVar[Any] = STRICT

    epochs: int = 2
    learning_rate: float = 1e-4
    batch: int | None = None
    """Blocks a step; None for the paper's 1.3M tokens, or fewer where that gives under 66 steps."""
    warmup: float = 0.03
    """Share of the steps over which the learning rate rises; then it falls linearly to 0."""
    z: float = 1e-3
    """Coefficient of the router's z-loss."""
    balance: float = 0.0
    """Coefficient of the load-balancing loss; the paper has none."""
    seed: int = 0
    save_every: int = 0
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "batch", "micro_batch"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}: expected more than 0, got {value}")
        for name in ("z", "balance", "seed", "save_every"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup: expected a share below 1, got {self.warmup}")

    def options(self, num_blocks: int, length: int, *, use_cpu: bool) -> TrainOptions:
        """Steps and batch for that many blocks of one epoch."""
        seen = num_blocks * self.epochs
        most = max(1, PAPER_BATCH_TOKENS // length)
        batch = self.batch or max(1, min(most, seen // PAPER_STEPS))
        steps = math.ceil(seen / batch)
        return TrainOptions(
            num_steps=steps,
            batch=batch,
            learning_rate=self.learning_rate,
            seed=self.seed,
            warmup_steps=math.ceil(self.warmup * steps),
            scheduler="linear",
            betas=(0.9, 0.95),
            micro_batch=self.micro_batch,
            use_cpu=use_cpu,
            save_every=self.save_every,
            log_every=max(1, steps // 50),
        )


@dataclass(frozen=True)
class Tuned:
    """A model of which some components were trained."""

    moved: Mapping[Key, Tensor]
    """The trained pieces, rounded to their stored dtype."""
    before: Mapping[str, float]
    """Held-out loss by domain, nats per token."""
    after: Mapping[str, float]
    routing: Mapping[str, Any]
    """`RoutingProfile.as_dict` on the held-out texts, afterwards."""
    stage: Mapping[str, Any]
    """What was done, for a manifest."""


def tune(
    checkpoint: Checkpoint,
    components: Sequence[str],
    data: RouteData,
    how: Tuning,
    *,
    work: Path,
    top_k: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    on_step: OnStep | None = None,
) -> Tuned:
    """Train the tensors of `components`; everything else is frozen and checked by hash.

    Args:
        checkpoint: a MoE.
        components: such as `router`, or `router` and `norm`.
        data: from `read_route_data`.
        how: steps, rates, losses.
        work: the training's folder; an interrupted training resumes from its checkpoints.
        top_k: experts active per token; None for the checkpoint's.
        device: where to train.
        dtype: to train in.
        on_step: told about progress.

    Raises:
        BranchError: the checkpoint has none of these components, or `top_k` is out of range.
        FrozenMovedError: something else moved.
        RecipeError: there are several processes.
        TrainingError: the loss is not finite; the last checkpoint in `work` stays.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise RecipeError(
            "routers are trained in one process; start the command without a launcher"
        )
    model = from_pretrained(checkpoint, dtype, "eager", torch.device(device))
    used_k = set_top_k(model, checkpoint, top_k)
    names = _parameters(model, checkpoint, components)
    before = _losses(model, data)
    frozen = freeze(model, Trainable(whole=tuple(names)))
    length = next(iter(data.train.values())).length
    num_blocks = sum(len(blocks) for blocks in data.train.values())
    options = how.options(num_blocks, length, use_cpu=device == "cpu")
    began = time.perf_counter()
    model.train()
    result = train_lm(
        model,
        dict(data.train),
        options,
        work=work,
        router=RouterLoss(balance=how.balance, z=how.z),
        prepare=frozen.prepare,
        on_step=on_step,
    )
    seconds = time.perf_counter() - began
    frozen.check()
    model.eval()
    moved = _rounded(model, checkpoint, names)
    after = _losses(model, data)
    stage = {
        "stage": "+".join(components),
        "tokens": result.num_tokens,
        "steps": result.num_steps,
        "batch": options.batch,
        "length": length,
        "learning_rate": how.learning_rate,
        "z": how.z,
        "balance": how.balance,
        "seed": how.seed,
        "top_k": used_k,
        "seconds": round(seconds, 3),
        "device": device,
        "devices": 1,
        "flops": _flops(checkpoint, used_k) * result.num_tokens,
        "records": {name: list(counts) for name, counts in data.num_records.items()},
        "loss_before": before,
        "loss_after": after,
    }
    routing = profile_texts(model, checkpoint.family, dict(data.held_out_ids)).as_dict()
    return Tuned(moved, before, after, routing, stage)


def set_top_k(model: PreTrainedModel, checkpoint: Checkpoint, top_k: int | None) -> int:
    """Let `top_k` experts serve each token of a live model; returns how many do.

    Raises:
        BranchError: there are not so many experts.
    """
    if top_k is None:
        return checkpoint.family.top_k(checkpoint.config)
    if not 1 <= top_k <= checkpoint.num_experts:
        raise BranchError(
            f"top_k {top_k}: {checkpoint.source} has {checkpoint.num_experts} experts per layer"
        )
    for module in routers(model, checkpoint.family).values():
        module.top_k = top_k  # pyright: ignore[reportArgumentType]
    model.config.num_experts_per_tok = top_k
    return top_k


def write_tuned(
    checkpoint: Checkpoint,
    tuned: Tuned,
    out: str | Path,
    *,
    finish: Callable[[Path], Any],
) -> None:
    """Write `checkpoint` with the trained pieces in their places; all other bytes are copied.

    Raises:
        OutputError: `out` cannot be used, or the disk is full.
    """
    config = dict(checkpoint.config)
    if checkpoint.family.top_k_key:
        sizes = checkpoint.family.sizes(config)
        changed = {checkpoint.family.top_k_key: tuned.stage["top_k"]}
        key = checkpoint.family.text_config
        inside = key is not None and sizes is config.get(key)
        config |= {key: {**sizes, **changed}} if inside and key else changed
    write_model(
        out,
        tuple(_entries(checkpoint, tuned.moved)),
        config,
        checkpoint,
        inputs=[checkpoint.path],
        finish=finish,
    )


def _flops(checkpoint: Checkpoint, top_k: int) -> int:
    """Per token: forward, and backward through the activations; frozen weights get no gradient."""
    return 2 * sizes_of(checkpoint).cost(checkpoint.num_experts, top_k).flops_per_token


def _parameters(
    model: PreTrainedModel, checkpoint: Checkpoint, components: Sequence[str]
) -> list[str]:
    named = [name for name, _ in model.named_parameters()]
    place = checkpoint.family.place
    found = [name for name in named if place(name).component in components]
    for component in components:
        if not any(place(name).component == component for name in found):
            raise BranchError(f"{checkpoint.source}: has no {component} to train")
    return found


def _losses(model: PreTrainedModel, data: RouteData) -> dict[str, float]:
    return {name: validation_loss(model, blocks) for name, blocks in data.held_out.items()}


@torch.no_grad()
def _rounded(
    model: PreTrainedModel, checkpoint: Checkpoint, names: Sequence[str]
) -> dict[Key, Tensor]:
    """The trained pieces in their stored dtype; the live model gets the rounded numbers too."""
    stored = checkpoint.pieces()
    found = {}
    for name in names:
        parameter = model.get_parameter(name)
        nbytes = parameter.numel() * parameter.element_size()
        pieces = checkpoint.family.pieces(name, tuple(parameter.shape), nbytes)
        flat = parameter.view(-1)
        for piece in pieces:
            first = piece.offset // parameter.element_size()
            part = flat[first : first + math.prod(piece.shape)]
            rounded = part.to(DTYPES[stored[piece.key].dtype])
            part.copy_(rounded)
            found[piece.key] = rounded.cpu().clone().view(piece.shape)
    return found


def _entries(checkpoint: Checkpoint, moved: Mapping[Key, Tensor]) -> Iterator[Entry]:
    changed: dict[str, list[tuple[int, Key]]] = {}
    for key in moved:
        stored = checkpoint.pieces()[key]
        changed.setdefault(stored.name, []).append((stored.piece.offset, key))
    for name, tensor in checkpoint.tensors.items():
        if name not in changed:
            yield Entry.of(tensor)
            continue
        sources = [
            produced(tensor.dtype, tuple(moved[key].shape), partial(moved.__getitem__, key))
            for _, key in sorted(changed[name])
        ]
        yield Entry(name, tensor.dtype, tensor.shape, tuple(sources))
