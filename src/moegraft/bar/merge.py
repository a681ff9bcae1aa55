"""Merge branches and their anchor into one MoE, or by the baselines that BAR is compared with.

Expert 0 is the anchor's FFN, expert i the domain expert of branch i, byte for byte. Router row i
is branch i's own; row 0 is the mean of the branches' rows 0. Every other tensor is the plain mean
over the anchor and all branches (arXiv:2604.18473). All experts are active.

Departures from the paper: a new token's row is the mean over the models that have the token
(the authors' anchor has all tokens from the start); row 0 is not averaged with the row of an
untrained copy of the anchor, which has no router here.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from moegraft.bar.average import Policy, Shared, by_component, mean
from moegraft.bar.branches import Branch, check_branches, open_branch, untrained
from moegraft.bar.entries import byte_range, computed, copied, produced
from moegraft.bar.manifest import identity
from moegraft.bar.merge_tokens import MergedTokens, merge_tokens
from moegraft.bar.names import content_digest, published_name, rows
from moegraft.bar.parts import Part, branch_part, check_parts, dense_part
from moegraft.bar.record import DIVERGENCE, MergeRecord, relative_source, write_record
from moegraft.bar.router import router_rows
from moegraft.bar.twin import check_tensors, expert_key, twin_config, twin_of
from moegraft.bar.vocabulary import VOCABULARY
from moegraft.bar.write import write_model
from moegraft.checkpoint import Checkpoint, StoredPiece, load_tensor, open_checkpoint
from moegraft.checkpoint.writer import Entry
from moegraft.config import STRICT
from moegraft.errors import BranchError
from moegraft.families import COMPONENTS, Family, Key

Method = Literal["bar", "average", "btx", "btx-released"]


@dataclass(frozen=True, slots=True)
class MergeRecipe:
    """What to merge, and how."""

    __pydantic_config__: ClassVar[Any] = STRICT

    anchor: str
    """Folder, `org/name[@revision]` or `nano:NAME`: what all branches grew from."""
    branches: tuple[str, ...]
    """Folders of branches; for the baselines dense models, as SOURCE or NAME=SOURCE."""
    method: Method = "bar"
    """`bar`; `average`: one dense model of mean weights; `btx`: dense models' FFNs as experts,
    everything else averaged; `btx-released`: everything else of the first dense model."""
    shared: Policy = "mean"
    """How shared tensors become one: mean, changed, anchor, equal or first."""
    shared_by: Mapping[str, Policy] = field(default_factory=dict)
    """The same for single components, e.g. `{lm_head: changed}`."""
    as_released: bool = False
    """Accept branches whose anchor expert moved, and average it, as the authors' script does."""
    top_k: int | None = None
    """Experts active per token; all when left out."""
    seed: int = 0
    """Of the new router of `btx`."""

    def __post_init__(self) -> None:
        wrong = sorted(set(self.shared_by) - set(COMPONENTS))
        if wrong:
            raise ValueError(f"shared_by: unknown component {wrong[0]!r}")
        if not self.branches:
            raise ValueError("branches: expected at least one")
        if self.top_k is not None and not 1 <= self.top_k <= len(self.branches) + 1:
            raise ValueError(
                f"top_k: expected 1 to {len(self.branches) + 1}, the number of experts, "
                f"got {self.top_k}"
            )
        if self.as_released and self.method != "bar":
            raise ValueError("as_released goes with method bar only")


@dataclass(frozen=True)
class MergePlan:
    """A checked merge."""

    recipe: MergeRecipe
    anchor: Checkpoint
    anchor_identity: Mapping[str, Any]
    parts: tuple[Part, ...]
    branches: tuple[Branch, ...]
    """Empty for the baselines."""
    tokens: MergedTokens | None
    warnings: tuple[str, ...]
    shared: Shared
    """Filled with each tensor's divergence while the plan is carried out."""

    @property
    def is_dense(self) -> bool:
        """Whether the result is one dense model."""
        return self.recipe.method == "average"

    @property
    def family(self) -> Family:
        """Of the result."""
        return self.anchor.family if self.is_dense else twin_of(self.anchor)[1]

    @property
    def num_experts(self) -> int:
        """Experts per layer of the result, the anchor's included."""
        return len(self.parts) + 1

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json of the result."""
        if self.is_dense:
            found = dict(self.anchor.config)
        else:
            found = twin_config(self.anchor, self.num_experts).to_dict()
            found["num_experts_per_tok"] = self.recipe.top_k or self.num_experts
        if self.tokens is not None:
            found["vocab_size"] = self.tokens.num_rows
        return found

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Every tensor of the result and the bytes that make it."""
        return tuple(_entries(self))

    def policy(self, component: str) -> Policy:
        """How shared tensors of a component become one."""
        default = "first" if self.recipe.method == "btx-released" else self.recipe.shared
        return self.recipe.shared_by.get(component, default)


def plan_merge(recipe: MergeRecipe) -> MergePlan:
    """Check that the branches fit; reads their frozen tensors and the anchor once, to hash them.

    Raises:
        BranchError: names the branch and the first thing that does not fit.
        CheckpointError: a folder is damaged.
    """
    anchor = open_checkpoint(recipe.anchor)
    check_tensors(anchor)
    about = identity(anchor, anchor.content_hashes())
    warnings: list[str] = []
    branches: tuple[Branch, ...] = ()
    if recipe.method == "bar":
        branches = tuple(open_branch(folder) for folder in recipe.branches)
        check_branches(anchor, about, branches, frozen=not recipe.as_released)
        warnings += _untrained(branches)
        parts = tuple(branch_part(branch) for branch in branches)
    else:
        parts = tuple(_dense(source, anchor) for source in recipe.branches)
    check_parts(anchor, parts)
    tokens = merge_tokens(anchor, parts)
    names = ("anchor", *(part.name for part in parts))
    shared = Shared(names)
    return MergePlan(recipe, anchor, about, parts, branches, tokens, tuple(warnings), shared)


def write_merge(
    plan: MergePlan, out: str | Path, *, on_bytes: Callable[[int], None] | None = None
) -> MergeRecord:
    """Write the merged model with `merge.json` and `divergence.json`.

    Streams from disk: memory is one tensor, times the models whose pages are being read.

    Returns:
        The record that was written.

    Raises:
        OutputError: `out` cannot be used, or the disk is full.
        BranchError: policy `equal`, and a tensor differs.
    """
    return write_model(
        out,
        plan.entries,
        plan.config,
        plan.anchor,
        inputs=[plan.anchor.path, *(part.checkpoint.path for part in plan.parts)],
        tokenizer=None if plan.tokens is None else plan.tokens.tokenizer,
        finish=lambda folder: _finish(plan, folder, Path(out)),
        on_bytes=on_bytes,
    )


def _dense(source: str, anchor: Checkpoint) -> Part:
    name, _, place = source.rpartition("=")
    checkpoint = open_checkpoint(place)
    if checkpoint.family.name != anchor.family.name:
        raise BranchError(
            f"{place}: is a {checkpoint.family.name}, the anchor a {anchor.family.name}; this "
            "method merges dense models of one family (branches are merged with --method bar)"
        )
    return dense_part(name or Path(place).name, checkpoint)


def _untrained(branches: tuple[Branch, ...]) -> Iterator[str]:
    for branch in branches:
        if untrained(branch):
            yield f"the expert of {branch.folder} has not moved since the branch was made"
        elif not branch.manifest.stages:
            yield f"{branch.folder} records no stage: its expert was trained by something else"


def _entries(plan: MergePlan) -> Iterator[Entry]:
    routed: set[int] = set()
    for key, stored in plan.anchor.pieces().items():
        if key.component == "extra":
            continue
        pieces = [stored, *(part.pieces[key] for part in plan.parts)]
        if key.component == "mlp" and not plan.is_dense:
            assert key.layer is not None
            if key.layer not in routed:
                routed.add(key.layer)
                yield _router(plan, key.layer, stored)
            yield from _experts(plan, key, stored)
            continue
        name = published_name(plan.family, key)
        policy = plan.policy(key.component)
        if key.component in VOCABULARY and plan.tokens is not None:
            yield plan.tokens.entry(name, key.component, plan.shared, pieces, policy)
            continue
        source = plan.shared.source(name, key.component, pieces, policy)
        yield Entry(name, stored.dtype, stored.shape, (source,))


def _experts(plan: MergePlan, key: Key, stored: StoredPiece) -> Iterator[Entry]:
    for expert in range(plan.num_experts):
        name = published_name(plan.family, expert_key(key, expert))
        if expert:
            yield copied(name, plan.parts[expert - 1].pieces[key], stored.dtype)
        elif plan.recipe.as_released:
            kept = [stored, *(part.kept_ffn[key] for part in plan.parts)]
            source = plan.shared.source(name, "experts", kept, "mean")
            yield Entry(name, stored.dtype, stored.shape, (source,))
        else:
            yield copied(name, stored)


def _router(plan: MergePlan, layer: int, like: StoredPiece) -> Entry:
    name = published_name(plan.family, Key("router", layer, None, "router.weight"))
    hidden = int(plan.config["hidden_size"])
    shape = (plan.num_experts, hidden)
    if not plan.branches:
        start = router_rows("normal", _layers(plan.anchor), *shape, plan.recipe.seed)
        return computed(name, like.dtype, shape, lambda: start[layer])
    routers = [part.routers[layer] for part in plan.parts]
    first = produced(like.dtype, (1, hidden), lambda: _mean_row(routers))
    own = [rows(router, 1, 2) for router in routers]
    others = [
        byte_range(row)
        if row.dtype == like.dtype
        else produced(like.dtype, (1, hidden), lambda row=row: load_tensor(row))
        for row in own
    ]
    return Entry(name, like.dtype, shape, (first, *others))


def _mean_row(routers: list[StoredPiece]) -> Any:
    """The mean of the branches' rows 0; exactly their row where all agree."""
    import torch

    found = [load_tensor(rows(router, 0, 1)) for router in routers]
    equal = all(torch.equal(row, found[0]) for row in found[1:])
    return found[0] if equal else mean(found)


def _layers(anchor: Checkpoint) -> list[int]:
    layers = {key.layer for key in anchor.pieces() if key.component == "mlp"}
    return sorted(layer for layer in layers if layer is not None)


def _finish(plan: MergePlan, folder: Path, out: Path) -> MergeRecord:
    recipe = plan.recipe
    experts = [
        {
            "domain": part.name,
            "experts": [] if plan.is_dense else [index],
            "source": relative_source(part.checkpoint.path, out),
            "content_sha256": content_digest(part.checkpoint),
            "stages": [dict(s) for s in plan.branches[index - 1].manifest.stages]
            if plan.branches
            else [],
        }
        for index, part in enumerate(plan.parts, 1)
    ]
    source = relative_source(plan.anchor.path, out)
    record = MergeRecord(
        method=recipe.method,
        anchor={**plan.anchor_identity, "source": source},
        experts=tuple(experts),
        shared={"default": plan.policy(""), **recipe.shared_by},
        tokens={} if plan.tokens is None else dict(plan.tokens.ids),
        warnings=plan.warnings,
    )
    write_record(folder, record)
    moved = {"components": by_component(plan.shared.moved), "tensors": plan.shared.moved}
    (folder / DIVERGENCE).write_text(json.dumps(moved, indent=1) + "\n", encoding="utf-8")
    return record
