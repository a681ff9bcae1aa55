"""Merge branches of one MoE: every branch's appended experts behind the host's, rows stacked.

Beyond the paper, whose anchors are dense. All old tensors are frozen in such branches, so there
is nothing to average, and as many experts stay active as before.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from moegraft.bar.append import grown_config
from moegraft.bar.average import Shared
from moegraft.bar.branches import Branch, check_branches, open_branch
from moegraft.bar.entries import byte_range, copied, produced
from moegraft.bar.merge_dense import untrained_warnings
from moegraft.bar.merge_recipe import MergeRecipe, active_experts
from moegraft.bar.merge_tokens import MergedTokens, merge_tokens
from moegraft.bar.names import published_name, rows
from moegraft.bar.parts import Part
from moegraft.bar.verify import check_stored
from moegraft.bar.vocabulary import VOCABULARY
from moegraft.checkpoint import Checkpoint, StoredPiece, load_tensor
from moegraft.checkpoint.writer import ByteRange, Entry, Produced
from moegraft.errors import BranchError
from moegraft.families import Family, Key


@dataclass(frozen=True)
class AppendedMerge:
    """A checked merge of branches that appended experts to one MoE."""

    recipe: MergeRecipe
    anchor: Checkpoint
    anchor_identity: Mapping[str, Any]
    parts: tuple[Part, ...]
    branches: tuple[Branch, ...]
    tokens: MergedTokens | None
    warnings: tuple[str, ...]
    shared: Shared

    is_dense = False

    @property
    def family(self) -> Family:
        """Of the result: the host's."""
        return self.anchor.family

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """Which experts each branch's become."""
        found, first = [], self.anchor.num_experts
        for branch in self.branches:
            count = branch.manifest.num_appended
            found.append(tuple(range(first, first + count)))
            first += count
        return tuple(found)

    @property
    def num_experts(self) -> int:
        """Experts per layer of the result."""
        return self.anchor.num_experts + sum(b.manifest.num_appended for b in self.branches)

    @property
    def config(self) -> dict[str, Any]:
        """config.json of the result."""
        rows_of_vocabulary = None if self.tokens is None else self.tokens.num_rows
        found = grown_config(self.anchor, self.num_experts, rows_of_vocabulary)
        own = self.anchor.family.top_k(self.anchor.config)
        key = str(self.anchor.family.top_k_key)
        return found | {key: active_experts(self.recipe, own, self.num_experts)}

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Every tensor of the result and the bytes that make it."""
        return tuple(_entries(self))

    def policy(self, component: str) -> str:
        """Old tensors are equal in all branches."""
        return "equal"


def plan_appended(
    recipe: MergeRecipe, anchor: Checkpoint, about: Mapping[str, Any]
) -> AppendedMerge:
    """Check that branches of a MoE fit together; hashes every frozen byte of each.

    Args:
        recipe: what to merge.
        anchor: the MoE.
        about: its `identity`.

    Raises:
        BranchError: names the branch and the first thing that does not fit.
    """
    if recipe.method != "bar" or recipe.as_released:
        what = "as_released" if recipe.as_released else f"method {recipe.method}"
        raise BranchError(f"{what} is for dense anchors; {anchor.source} is a MoE")
    branches = tuple(open_branch(folder) for folder in recipe.branches)
    check_branches(anchor, about, branches)
    for branch in branches:
        check_stored(branch)
    parts = tuple(_part(branch) for branch in branches)
    names = ("anchor", *(part.name for part in parts))
    found = AppendedMerge(
        recipe,
        anchor,
        about,
        parts,
        branches,
        merge_tokens(anchor, parts),
        tuple(untrained_warnings(branches)),
        Shared(names),
    )
    active_experts(recipe, anchor.family.top_k(anchor.config), found.num_experts)
    return found


def _part(branch: Branch) -> Part:
    return Part(
        branch.domain,
        str(branch.folder),
        branch.checkpoint,
        branch.checkpoint.pieces(),
        tokens=branch.manifest.tokens,
    )


def _entries(plan: AppendedMerge) -> Iterator[Entry]:
    old = plan.anchor.num_experts
    for key, stored in plan.anchor.pieces().items():
        if key.component == "router":
            yield _router(plan, key, stored)
        elif key.component == "experts":
            yield copied(published_name(plan.family, key), stored)
            if key.expert == old - 1:
                yield from _appended(plan, key, stored)
        elif key.component in VOCABULARY and plan.tokens is not None:
            pieces = [stored, *(part.pieces[key] for part in plan.parts)]
            policy = plan.policy(key.component)
            yield plan.tokens.entry(stored.name, key.component, plan.shared, pieces, policy)
        else:
            yield Entry.of(stored.tensor)


def _appended(plan: AppendedMerge, key: Key, like: StoredPiece) -> Iterator[Entry]:
    for branch, places in zip(plan.branches, plan.places, strict=True):
        for own, place in enumerate(places, branch.first_expert):
            piece = branch.checkpoint.pieces()[key._replace(expert=own)]
            name = published_name(plan.family, key._replace(expert=place))
            yield copied(name, piece, like.dtype)


def _router(plan: AppendedMerge, key: Key, stored: StoredPiece) -> Entry:
    sources: list[ByteRange | Produced] = [byte_range(stored)]
    for branch in plan.branches:
        first, count = branch.first_expert, branch.manifest.num_appended
        own = rows(branch.checkpoint.pieces()[key], first, first + count)
        if own.dtype == stored.dtype:
            sources.append(byte_range(own))
        else:
            sources.append(produced(stored.dtype, own.shape, lambda own=own: load_tensor(own)))
    shape = (plan.num_experts, stored.shape[1])
    return Entry(stored.name, stored.dtype, shape, tuple(sources))
