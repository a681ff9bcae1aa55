"""Merge branches of a dense anchor, or the dense models of a baseline, tensor by tensor.

Expert 0 is the anchor's FFN, expert i the domain expert of branch i, byte for byte. Router row i
is branch i's own; row 0 is the mean of the branches' rows 0. Every other tensor is the plain mean
over the anchor and all branches (arXiv:2604.18473). All experts are active.

Departures from the paper: a new token's row is the mean over the models that have the token
(the authors' anchor has all tokens from the start); row 0 is not averaged with the row of an
untrained copy of the anchor, which has no router here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moegraft.bar.average import Shared, mean
from moegraft.bar.branches import Branch, check_branches, open_branch, untrained
from moegraft.bar.entries import byte_range, computed, copied, produced
from moegraft.bar.merge_recipe import MergeRecipe, active_experts
from moegraft.bar.merge_tokens import MergedTokens, merge_tokens
from moegraft.bar.names import published_name, rows
from moegraft.bar.parts import Part, branch_part, check_parts, dense_part
from moegraft.bar.router import router_rows
from moegraft.bar.twin import check_tensors, expert_key, twin_config, twin_of
from moegraft.bar.verify import check_stored
from moegraft.bar.vocabulary import VOCABULARY
from moegraft.checkpoint import Checkpoint, StoredPiece, load_tensor, open_checkpoint
from moegraft.checkpoint.writer import Entry
from moegraft.errors import BranchError
from moegraft.families import Family, Key


@dataclass(frozen=True)
class DenseMerge:
    """A checked merge of branches or dense models of one dense anchor."""

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

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """Which experts each part becomes."""
        count = len(self.parts)
        return ((),) * count if self.is_dense else tuple((index + 1,) for index in range(count))

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json of the result."""
        if self.is_dense:
            found = dict(self.anchor.config)
        else:
            found = twin_config(self.anchor, self.num_experts).to_dict()
            top_k = active_experts(self.recipe, self.num_experts, self.num_experts)
            found["num_experts_per_tok"] = top_k
        if self.tokens is not None:
            found["vocab_size"] = self.tokens.num_rows
        return found

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Every tensor of the result and the bytes that make it."""
        return tuple(_entries(self))

    def policy(self, component: str) -> str:
        """How shared tensors of a component become one."""
        default = "first" if self.recipe.method == "btx-released" else self.recipe.shared
        return self.recipe.shared_by.get(component, default)


def plan_dense(recipe: MergeRecipe, anchor: Checkpoint, about: Mapping[str, Any]) -> DenseMerge:
    """Check that what is merged fits a dense anchor; hashes what is frozen in the branches.

    Args:
        recipe: what to merge.
        anchor: what it grew from.
        about: the anchor's `identity`.

    Raises:
        BranchError: names the branch and the first thing that does not fit.
    """
    check_tensors(anchor)
    warnings: list[str] = []
    branches: tuple[Branch, ...] = ()
    if recipe.method == "bar":
        branches = tuple(open_branch(folder) for folder in recipe.branches)
        check_branches(anchor, about, branches)
        if not recipe.as_released:
            for branch in branches:
                check_stored(branch)
        warnings += untrained_warnings(branches)
        parts = tuple(branch_part(branch) for branch in branches)
    else:
        parts = tuple(_dense(source, anchor) for source in recipe.branches)
        _check_names(parts)
    check_parts(anchor, parts)
    tokens = merge_tokens(anchor, parts)
    names = ("anchor", *(part.name for part in parts))
    found = DenseMerge(
        recipe, anchor, about, parts, branches, tokens, tuple(warnings), Shared(names)
    )
    if not found.is_dense:
        active_experts(recipe, found.num_experts, found.num_experts)
    return found


def _dense(source: str, anchor: Checkpoint) -> Part:
    name, _, place = source.rpartition("=")
    checkpoint = open_checkpoint(place)
    if checkpoint.family.name != anchor.family.name:
        raise BranchError(
            f"{place}: is a {checkpoint.family.name}, the anchor a {anchor.family.name}; this "
            "method merges dense models of one family (branches are merged with --method bar)"
        )
    return dense_part(name or Path(place).name, checkpoint, anchor)


def _check_names(parts: Sequence[Part]) -> None:
    names = ["anchor", *(part.name for part in parts)]
    for place, part in enumerate(parts, 1):
        if part.name in names[:place]:
            raise BranchError(
                f"{part.source}: another model is called {part.name!r}; name each NAME=SOURCE"
            )


def untrained_warnings(branches: Sequence[Branch]) -> Iterator[str]:
    """Sentences about branches whose expert is as it was made, or was trained elsewhere."""
    for branch in branches:
        if untrained(branch):
            yield f"the expert of {branch.folder} has not moved since the branch was made"
        elif not branch.manifest.stages:
            yield f"{branch.folder} records no stage: its expert was trained by something else"


def _entries(plan: DenseMerge) -> Iterator[Entry]:
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


def _experts(plan: DenseMerge, key: Key, stored: StoredPiece) -> Iterator[Entry]:
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


def _router(plan: DenseMerge, layer: int, like: StoredPiece) -> Entry:
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
