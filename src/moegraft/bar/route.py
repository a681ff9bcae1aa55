"""Train only the routers of a merged model, on a small share of every domain (BAR's last stage).

Cross-entropy and a router z-loss of 1e-3, no load-balancing loss, no domain labels, all experts
active, two epochs at 1e-4 falling linearly after 3 % warm-up; the routers start from the merged
rows (arXiv:2604.18473). For other numbers of active experts a router is trained for each, as in
the paper, and the merged router without training is always measured beside it.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import torch

from moegraft.bar.card import write_merge_card, write_tuned_card
from moegraft.bar.json_record import write_json_record
from moegraft.bar.names import content_digest
from moegraft.bar.record import DIVERGENCE, MERGE, read_record, rebased, write_record
from moegraft.bar.route_data import RouteData, read_route_data
from moegraft.bar.tune import Tuned, Tuning, tune, write_tuned
from moegraft.checkpoint import Checkpoint, open_checkpoint
from moegraft.checkpoint.card import base_models, stated_licence
from moegraft.checkpoint.staging import check_target
from moegraft.config import STRICT, fingerprint
from moegraft.errors import BranchError, OutputError
from moegraft.runtime.load import stored_dtype
from moegraft.runtime.tokens import load_tokenizer

ROUTE = "route.json"
"""Of the whole command: a row per k and router."""
ROUTED = "routed.json"
"""In each finished model's folder."""


@dataclass(frozen=True, slots=True)
class RouteRecipe:
    """What to train the routers on, and how."""

    __pydantic_config__: ClassVar[Any] = STRICT

    model: str
    """The merged model's folder."""
    data: Mapping[str, str]
    """By domain, general ability included: a file or folder of chats or texts, or a Hub name."""
    share: float = 0.05
    """Of each source's records."""
    held_out: float = 0.02
    """Of each source's records, only measured."""
    top_k: tuple[int, ...] = ()
    """Train a router for each of these numbers of active experts; the model's when empty."""
    length: int = 2048
    """Tokens of a block."""
    tuning: Tuning = field(default_factory=Tuning)

    def __post_init__(self) -> None:
        if not self.data or not all((*self.data, *self.data.values())):
            raise ValueError("data: expected at least one NAME=SOURCE, neither of them empty")
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected a share above 0 and up to 1, got {self.share}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out: expected a share between 0 and 1, got {self.held_out}")
        if self.length < 2:
            raise ValueError(f"length: expected at least 2, got {self.length}")
        if len(set(self.top_k)) != len(self.top_k):
            raise ValueError("top_k: a number stands twice")


Step = Callable[[str, int, int], None]
"""Told about progress: what is trained, steps done, steps in all."""


def train_routers(
    recipe: RouteRecipe,
    out: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    on_step: Step = lambda what, done, total: None,
) -> dict[str, Any]:
    """Train the routers and write the model to `out`; for several k to `out/k-1` and so on.

    Interrupted, the same command goes on: finished models stay, and an unfinished training has
    its checkpoints in `OUT.work`, which is removed at the end.

    Args:
        recipe: model, data, settings.
        out: the folder to make.
        device: where to train.
        dtype: to train in; `auto` for the stored one.
        on_step: told about progress.

    Returns:
        The content of route.json: one row per k and router (merged, trained) with its held-out
        losses, and the routing by domain.

    Raises:
        BranchError: no merged model, or k is out of range.
        OutputError: `out` cannot be used, or holds routers of another recipe, model or data.
        TrainDataError: a domain is empty.
        TrainingError: the loss is not finite.
    """
    out = Path(out).expanduser()
    checkpoint = open_checkpoint(recipe.model)
    tokenizer = load_tokenizer(checkpoint)
    if tokenizer is None:
        raise BranchError(f"{recipe.model}: has no tokenizer, so no text can be read")
    own_k = checkpoint.family.top_k(checkpoint.config)
    wanted = recipe.top_k or (own_k,)
    if not checkpoint.num_experts:
        raise BranchError(f"{recipe.model}: is a dense model, which has no routers to train")
    for k in wanted:
        if not 1 <= k <= checkpoint.num_experts:
            raise BranchError(f"top_k {k}: {recipe.model} has {checkpoint.num_experts} experts")
    targets = {k: out / f"k-{k}" if recipe.top_k else out for k in wanted}
    for target in targets.values():
        if not (target / ROUTED).is_file():
            check_target(target, [checkpoint.path])
    data = read_route_data(
        recipe.data,
        tokenizer,
        share=recipe.share,
        held_out=recipe.held_out,
        length=recipe.length,
        seed=recipe.tuning.seed,
    )
    made_of = _made_of(recipe, checkpoint, data)
    where = torch_dtype(checkpoint, dtype)
    work = out.with_name(f"{out.name}.work")
    rows: list[dict[str, Any]] = []
    routing = {}
    for k, target in targets.items():
        about = _finished(target, made_of)
        if about is None:
            tuned = tune(
                checkpoint,
                ["router"],
                data,
                recipe.tuning,
                work=work / f"k-{k}",
                top_k=k,
                device=device,
                dtype=where,
                on_step=lambda done, total, k=k: on_step(f"router for k = {k}", done, total),
            )
            about = write_routed(checkpoint, tuned, target, recipe, made_of)
        rows += about["rows"]
        routing[str(k)] = about["routing"]
    found = {"rows": rows, "routing": routing, "data": _about_data(recipe, data.num_records)}
    write_json_record(out, ROUTE, found)
    shutil.rmtree(work, ignore_errors=True)
    return found


def write_routed(
    checkpoint: Checkpoint,
    tuned: Tuned,
    out: Path,
    recipe: RouteRecipe,
    made_of: Mapping[str, Any],
) -> dict[str, Any]:
    """Write one model with trained routers, its record with one more stage, and what changed."""
    k = tuned.stage["top_k"]
    rows = [
        {"k": k, "router": "merged, untrained", "loss": dict(tuned.before)},
        {"k": k, "router": "trained", "loss": dict(tuned.after)},
    ]
    about = {**made_of, "rows": rows, "routing": dict(tuned.routing)}
    title = out.expanduser().resolve().name

    def finish(folder: Path) -> None:
        if (checkpoint.path / MERGE).is_file():
            record = rebased(read_record(checkpoint.path), checkpoint.path, out)
            stage = {**tuned.stage, "stage": "route", "share": recipe.share}
            record = record.with_stage(stage)
            write_record(folder, record)
            given = stated_licence(checkpoint), base_models(checkpoint)
            write_merge_card(folder, record, *given, title=title, is_moe=True)
        else:
            write_tuned_card(folder, checkpoint, tuned.stage, title=title)
        if (checkpoint.path / DIVERGENCE).is_file():
            shutil.copyfile(checkpoint.path / DIVERGENCE, folder / DIVERGENCE)
        write_json_record(folder, ROUTED, about)

    write_tuned(checkpoint, tuned, out, finish=finish)
    return about


def torch_dtype(checkpoint: Checkpoint, name: str) -> torch.dtype:
    """The dtype to train in.

    Raises:
        BranchError: no such dtype.
    """
    if name == "auto":
        return stored_dtype(checkpoint)
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise BranchError(f"dtype {name!r}: expected float32, bfloat16 or auto")
    return found


def _made_of(recipe: RouteRecipe, checkpoint: Checkpoint, data: RouteData) -> dict[str, Any]:
    """What decides the result; a finished training of something else must not pass for this one."""
    blocks = (*data.train.values(), *data.held_out.values())
    content = "".join(own.digest() for own in blocks)
    return {
        "recipe": fingerprint(recipe),
        "model": content_digest(checkpoint),
        "data": sha256(content.encode()).hexdigest(),
    }


def _finished(target: Path, made_of: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a finished training of this folder found.

    Raises:
        OutputError: it is of another recipe, model or data.
    """
    file = target / ROUTED
    if not file.is_file():
        return None
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{file}: cannot be read ({error}); name another folder") from None
    for what, own in made_of.items():
        if not isinstance(about, dict) or about.get(what) != own:
            raise OutputError(f"{target}: holds routers of another {what}; name another folder")
    return about


def _about_data(recipe: RouteRecipe, counts: Mapping[str, tuple[int, int, int]]) -> dict[str, Any]:
    names = ("sampled", "held_out", "all")
    records = {name: dict(zip(names, own, strict=True)) for name, own in counts.items()}
    return {"share": recipe.share, "records": records}
