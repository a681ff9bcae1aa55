"""Open branches for a merge, and check that they fit: one anchor, nothing frozen has moved."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moegraft.bar.manifest import BRANCH, Manifest, read_manifest
from moegraft.bar.names import experts_digest
from moegraft.bar.twin import twin_config
from moegraft.bar.vocabulary import vocabulary_rows
from moegraft.checkpoint import Checkpoint, open_checkpoint
from moegraft.errors import BranchError
from moegraft.transfer.compatibility import rope
from moegraft.transfer.vocabulary import read_tokenizer

_SAME = ("hidden_act", "rms_norm_eps", "sliding_window", "tie_word_embeddings", "norm_topk_prob")
"""Fields of config.json that all branches must share, beside rope and vocabulary."""


@dataclass(frozen=True)
class Branch:
    """An opened branch."""

    folder: Path
    manifest: Manifest
    checkpoint: Checkpoint

    @property
    def domain(self) -> str:
        """What it learnt."""
        return self.manifest.domain

    @property
    def first_expert(self) -> int:
        """Index of its first domain expert."""
        return self.checkpoint.num_experts - self.manifest.num_appended


def open_branch(folder: str | Path) -> Branch:
    """Open the branch in `folder` by its headers.

    Raises:
        BranchError: it has no manifest, or its experts are not those of the manifest.
        CheckpointError: it is damaged.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    checkpoint = open_checkpoint(folder)
    appended = manifest.num_appended
    if manifest.kind == "dense" and (checkpoint.num_experts, appended) != (2, 1):
        raise BranchError(
            f"{folder}: has {checkpoint.num_experts} experts per layer, but {BRANCH} says it is "
            "one domain expert beside a dense anchor"
        )
    return Branch(folder, manifest, checkpoint)


def check_branches(anchor: Checkpoint, own: Mapping[str, Any], branches: Sequence[Branch]) -> None:
    """Check that `branches` grew from `anchor`, compute as it does, and are for several domains.

    What is frozen in them is left to `verify.check_stored`.

    Args:
        anchor: the checkpoint that all branches must have grown from.
        own: the anchor's `identity`.
        branches: the branches.

    Raises:
        BranchError: names the first thing that does not fit, and in which branch.
    """
    if not branches:
        raise BranchError("nothing to merge: expected at least one branch")
    _check_domains(branches)
    expected = _expected_config(anchor)
    for branch in branches:
        theirs = branch.manifest.anchor
        if theirs.get("content_sha256") != own["content_sha256"]:
            raise BranchError(
                f"{branch.folder}: grew from another anchor, {theirs.get('name')} "
                f"({str(theirs.get('content_sha256'))[:12]}); expected {own['name']} "
                f"({own['content_sha256'][:12]})"
            )
        _check_config(anchor, expected, branch)
        _check_tokenizer(anchor, branch)
        old = max(1, anchor.num_experts)
        if branch.first_expert != old:
            raise BranchError(
                f"{branch.folder}: has {branch.first_expert} experts beside its own, expected {old}"
            )


def untrained(branch: Branch) -> bool:
    """Whether the domain expert is still what it was when the branch was made."""
    return branch.manifest.start.get("experts_sha256") == experts_digest(
        branch.checkpoint, branch.first_expert
    )


def _check_domains(branches: Sequence[Branch]) -> None:
    seen: dict[str, Path] = {}
    for branch in branches:
        if branch.domain in seen:
            raise BranchError(
                f"{seen[branch.domain]} and {branch.folder} are both branches for "
                f"{branch.domain!r}; expected one per domain"
            )
        seen[branch.domain] = branch.folder
        kind = branches[0].manifest.kind
        if branch.manifest.kind != kind:
            raise BranchError(
                f"{branch.folder}: is a branch of kind {branch.manifest.kind!r}, "
                f"{branches[0].folder} of kind {kind!r}; expected one kind"
            )


def _check_config(anchor: Checkpoint, expected: Mapping[str, Any], branch: Branch) -> None:
    for field, ours, theirs in _differences(expected, branch.checkpoint.config):
        raise BranchError(
            f"{branch.folder}: config.json has {field} {theirs}, the anchor {ours}; a branch "
            "must compute as its anchor does"
        )
    added = max(branch.manifest.tokens.values(), default=-1) + 1
    wanted = max(vocabulary_rows(anchor), added)
    if vocabulary_rows(branch.checkpoint) != wanted:
        raise BranchError(
            f"{branch.folder}: its vocabulary has {vocabulary_rows(branch.checkpoint)} rows, "
            f"expected {wanted}: the anchor's and those of the new tokens in {BRANCH}"
        )


def _differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    if rope(ours) and rope(theirs) and rope(ours) != rope(theirs):
        yield "rope", rope(ours), rope(theirs)
    for field in _SAME:
        if field in ours and field in theirs and ours[field] != theirs[field]:
            yield field, ours[field], theirs[field]


def _expected_config(anchor: Checkpoint) -> Mapping[str, Any]:
    """What a branch's config.json must agree with: the anchor's, every default written out."""
    if anchor.family.is_moe:
        return anchor.config
    return twin_config(anchor, 2).to_dict()


def _check_tokenizer(anchor: Checkpoint, branch: Branch) -> None:
    ours, theirs = read_tokenizer(anchor).ids, read_tokenizer(branch.checkpoint).ids
    if ours is None or theirs is None:
        return
    added = {index: token for token, index in branch.manifest.tokens.items()}
    expected = {**ours, **added}
    for index in sorted({*expected, *theirs}):
        if expected.get(index) != theirs.get(index):
            raise BranchError(
                f"{branch.folder}: its tokenizer has {theirs.get(index)!r} at id {index}, "
                f"expected {expected.get(index)!r}, as the anchor's with the tokens of branch.json"
            )
