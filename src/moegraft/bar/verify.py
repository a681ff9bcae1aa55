"""Check a branch that was trained anywhere: is it whole, and has anything frozen moved?"""

from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from moegraft.bar.branches import Branch, open_branch, untrained
from moegraft.bar.manifest import BRANCH, write_manifest
from moegraft.bar.names import find_piece, named_pieces, piece_hashes
from moegraft.bar.opened import LEVELS
from moegraft.bar.vocabulary import VOCABULARY
from moegraft.checkpoint import StoredPiece, load_tensor, open_checkpoint
from moegraft.errors import BranchError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `verify_branch` found."""

    domain: str
    layout: str
    """`published` or `fused`."""
    num_frozen: int
    """Pieces that were compared and have not moved."""
    opened: str
    """The lowest level that allows what has moved: expert, vocabulary or shared."""
    moved: tuple[str, ...]
    """Shared pieces that have moved, as stages may."""
    untrained: bool
    """Whether the domain expert is still as the branch was made."""
    stages: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {name: getattr(self, name) for name in self.__slots__}


def verify_branch(
    folder: str | Path, original: str | Path | None = None, *, tokens: int = 0
) -> Verdict:
    """Accept the branch in `folder`, or raise with the first frozen tensor that moved.

    Experts may be stored one by one or fused, in one file or many. A trainer that wrote a new
    folder has left branch.json behind: name the branch that it started from as `original`; when
    all is well, `folder` gets the manifest, with a stage `elsewhere`, and can be merged.

    Reads the whole branch once, 2 s per 4 GB.

    Args:
        folder: the trained branch.
        original: the branch as it was before, where `folder` has no branch.json.
        tokens: that it was trained on elsewhere, for the ledger.

    Raises:
        BranchError: a frozen tensor has moved, is missing or is of another dtype; a trained one
            is not finite; or the branch is not what its manifest says.
        CheckpointError: it is damaged.
    """
    folder = Path(folder).expanduser()
    branch = open_branch(folder) if original is None else _adopted(folder, Path(original))
    check_stored(branch)
    moved = [
        name
        for name, found in piece_hashes(branch.checkpoint, branch.manifest.shared)
        if found != branch.manifest.shared[name]
    ]
    _check_finite(branch, moved)
    level = _level(branch, moved)
    if original is not None:
        stage = {"stage": "elsewhere", "opened": level, "tokens": tokens}
        branch = replace(branch, manifest=branch.manifest.with_stage(stage))
        write_manifest(folder, branch.manifest)
    return Verdict(
        domain=branch.domain,
        layout=branch.checkpoint.layout,
        num_frozen=len(branch.manifest.frozen),
        opened=level,
        moved=tuple(moved),
        untrained=untrained(branch),
        stages=tuple(str(stage.get("stage")) for stage in branch.manifest.stages),
    )


def check_stored(branch: Branch) -> None:
    """Compare every frozen piece with its hash in the manifest.

    Raises:
        BranchError: names the first piece that moved; says so where only its dtype did; or the
            manifest and the checkpoint do not name the same pieces.
    """
    _check_named(branch)
    for name, found in piece_hashes(branch.checkpoint, branch.manifest.frozen):
        wanted = branch.manifest.frozen[name]
        if found == wanted:
            continue
        stored = find_piece(named_pieces(branch.checkpoint), name)
        other = _dtype_of(stored, wanted)
        if other is not None:
            raise BranchError(
                f"{branch.folder}: {name} has the values of the branch as it was made, but in "
                f"{stored.dtype}; save the branch in {other}, so that its bytes can be compared"
            )
        raise BranchError(
            f"{branch.folder}: {name} is frozen but has moved since the branch was made; train it "
            "with that tensor frozen (moegraft.train.freeze works in any loop), or merge "
            "--as-released, which averages it"
        )


def _check_named(branch: Branch) -> None:
    """Check that the manifest knows every piece but the domain experts, and no other."""
    frozen = {_piece(name) for name in branch.manifest.frozen}
    known = frozen | {_piece(name) for name in branch.manifest.shared}
    pieces = named_pieces(branch.checkpoint)
    for name, stored in pieces.items():
        key = stored.piece.key
        if key.component == "experts" and (key.expert or 0) >= branch.first_expert:
            continue
        if name not in (frozen if key.component in ("experts", "router") else known):
            raise BranchError(
                f"{branch.folder}: {BRANCH} has no hash of {name}, so nothing tells whether it "
                "moved; make the branch anew with `moegraft bar branch`"
            )
    for name in sorted(known - pieces.keys()):
        raise BranchError(f"{branch.folder}: lacks {name}, which {BRANCH} names")


def _check_finite(branch: Branch, moved: list[str]) -> None:
    """Check that what was trained holds numbers."""
    pieces = named_pieces(branch.checkpoint)
    for name, stored in pieces.items():
        key = stored.piece.key
        is_own = key.component == "experts" and (key.expert or 0) >= branch.first_expert
        trained = is_own or key.component == "router" or name in moved
        if trained and not torch.isfinite(load_tensor(stored)).all():
            raise BranchError(
                f"{branch.folder}: {name} holds values that are not finite; a merge with it would "
                "answer nothing"
            )


def _piece(name: str) -> str:
    """A name of the manifest, without its range of rows."""
    return name.partition("[")[0]


def _adopted(folder: Path, original: Path) -> Branch:
    """The checkpoint in `folder` under the manifest of the branch that it started from."""
    if (folder / BRANCH).exists():
        raise BranchError(f"{folder}: has a {BRANCH} of its own; drop --original")
    start = open_branch(original)
    checkpoint = open_checkpoint(folder)
    if checkpoint.num_experts != start.checkpoint.num_experts:
        raise BranchError(
            f"{folder}: has {checkpoint.num_experts} experts per layer, {original} has "
            f"{start.checkpoint.num_experts}; expected a trained copy of it"
        )
    return Branch(folder, start.manifest, checkpoint)


def _dtype_of(stored: StoredPiece, digest: str) -> str | None:
    """The narrower dtype whose exact copy in a wider one the piece is; None if there is none."""
    from moegraft.runtime.weights import DTYPES

    wide = load_tensor(stored)
    for name in ("BF16", "F16", "F32"):
        narrow = wide.to(DTYPES[name])
        if narrow.dtype != wide.dtype and torch.equal(narrow.to(wide.dtype), wide):
            raw = narrow.contiguous().view(-1).view(torch.uint8).numpy()
            if sha256(raw.data).hexdigest() == digest:
                return name
    return None


def _level(branch: Branch, moved: list[str]) -> str:
    if not moved:
        return LEVELS[0]
    pieces = named_pieces(branch.checkpoint)
    components = {pieces[name].piece.key.component for name in moved}
    return "vocabulary" if components <= set(VOCABULARY) else "shared"
