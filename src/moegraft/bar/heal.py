"""Heal a composed model: train its routers (or norms too) so that they fit the moved parts.

After component transfer the router of one checkpoint meets the experts of another. A short
training of nothing but the routers on ordinary data mends what it can, and the loss on held-out
text says how much that was; everything else stays as it was, byte for byte.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from moegraft.bar.card import write_tuned_card
from moegraft.bar.json_record import write_json_record
from moegraft.bar.route import torch_dtype
from moegraft.bar.route_data import read_route_data
from moegraft.bar.tune import Tuning, tune, write_tuned
from moegraft.checkpoint import open_checkpoint
from moegraft.checkpoint.card import public_name
from moegraft.checkpoint.staging import check_target
from moegraft.config import STRICT, fingerprint
from moegraft.errors import BranchError
from moegraft.runtime.tokens import load_tokenizer
from moegraft.train.loop import OnStep
from moegraft.transfer.provenance import PROVENANCE

HEAL = "heal.json"
TRAINABLE = ("router", "norm", "qk_norm")


@dataclass(frozen=True, slots=True)
class HealRecipe:
    """What to heal, and on what."""

    __pydantic_config__: ClassVar[Any] = STRICT

    model: str
    """A folder that `moegraft transfer` made, or any MoE."""
    data: Mapping[str, str]
    """By name, a file or folder of chats or texts, or a data set on the Hub."""
    train: tuple[str, ...] = ("router",)
    """Components to train: router, norm, qk_norm."""
    share: float = 1.0
    """Of each source's records."""
    held_out: float = 0.02
    """Of each source's records, only measured."""
    length: int = 2048
    """Tokens of a block."""
    tuning: Tuning = field(default_factory=Tuning)

    def __post_init__(self) -> None:
        wrong = [name for name in self.train if name not in TRAINABLE]
        if wrong or not self.train:
            got = repr(wrong[0]) if wrong else "nothing"
            raise ValueError(f"train: expected some of {', '.join(TRAINABLE)}, got {got}")
        if not self.data or not all((*self.data, *self.data.values())):
            raise ValueError("data: expected at least one NAME=SOURCE, neither of them empty")
        if not (0 < self.share <= 1 and 0 < self.held_out < 1 and self.length > 1):
            raise ValueError("share, held_out and length: expected (0, 1], (0, 1) and 2 or more")


def heal_model(
    recipe: HealRecipe,
    out: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Train the chosen components of a composition and write it to `out`.

    Interrupted, the same command goes on from the checkpoints in `OUT.work`.

    Args:
        recipe: model, data, components, settings.
        out: the folder to make.
        device: where to train.
        dtype: to train in; `auto` for the stored one.
        on_step: told about progress.

    Returns:
        The content of heal.json: held-out losses before and after, by source, the stage, and
        the routing.

    Raises:
        BranchError: no tokenizer, a dense model, or nothing to train.
        OutputError: `out` cannot be used.
        TrainDataError: a source is empty.
        FrozenMovedError: something else moved.
        TrainingError: the loss is not finite.
    """
    out = Path(out).expanduser()
    checkpoint = open_checkpoint(recipe.model)
    tokenizer = load_tokenizer(checkpoint)
    if tokenizer is None:
        raise BranchError(f"{recipe.model}: has no tokenizer, so no text can be read")
    if not checkpoint.num_experts:
        raise BranchError(f"{recipe.model}: is a dense model, which has no routers to train")
    check_target(out, [checkpoint.path])
    data = read_route_data(
        recipe.data,
        tokenizer,
        share=recipe.share,
        held_out=recipe.held_out,
        length=recipe.length,
        seed=recipe.tuning.seed,
    )
    work = out.with_name(f"{out.name}.work")
    tuned = tune(
        checkpoint,
        recipe.train,
        data,
        recipe.tuning,
        work=work,
        device=device,
        dtype=torch_dtype(checkpoint, dtype),
        on_step=on_step,
    )
    about = {
        "healed": public_name(checkpoint),
        "recipe": fingerprint(recipe),
        "loss_before": dict(tuned.before),
        "loss_after": dict(tuned.after),
        "stage": dict(tuned.stage),
        "routing": dict(tuned.routing),
    }

    def finish(folder: Path) -> None:
        if (checkpoint.path / PROVENANCE).is_file():
            shutil.copyfile(checkpoint.path / PROVENANCE, folder / f"composed-{PROVENANCE}")
        title = out.resolve().name
        write_tuned_card(folder, checkpoint, tuned.stage, title=title)
        write_json_record(folder, HEAL, about)

    write_tuned(checkpoint, tuned, out, finish=finish)
    shutil.rmtree(work, ignore_errors=True)
    return about
