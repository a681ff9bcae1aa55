"""What a merge is made of, in one form: shared tensors, one FFN, router rows, new tokens.

A branch and a fully trained dense model look alike here: its FFN, by the keys of the dense
family, and everything else that the anchor has too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from moegraft.bar.branches import Branch
from moegraft.bar.vocabulary import VOCABULARY, added_tokens
from moegraft.checkpoint import Checkpoint, StoredPiece
from moegraft.errors import BranchError
from moegraft.families import Key


@dataclass(frozen=True)
class Part:
    """One model of a merge."""

    name: str
    """Its domain."""
    source: str
    checkpoint: Checkpoint
    pieces: Mapping[Key, StoredPiece]
    """Shared tensors and the FFN to become an expert, by the dense anchor's keys."""
    kept_ffn: Mapping[Key, StoredPiece] = field(default_factory=dict)
    """A branch's expert 0, the anchor's FFN as the branch has it."""
    routers: Mapping[int, StoredPiece] = field(default_factory=dict)
    """A branch's router by layer, [2, hidden]."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """New tokens and their rows."""


def branch_part(branch: Branch) -> Part:
    """A branch of a dense anchor, as trained."""
    pieces, kept, routers = {}, {}, {}
    for key, stored in branch.checkpoint.pieces().items():
        if key.component == "experts":
            dense = Key("mlp", key.layer, None, key.role)
            (pieces if key.expert == 1 else kept)[dense] = stored
        elif key.component == "router":
            assert key.layer is not None
            routers[key.layer] = stored
        else:
            pieces[key] = stored
    return Part(
        branch.domain,
        str(branch.folder),
        branch.checkpoint,
        pieces,
        kept,
        routers,
        branch.manifest.tokens,
    )


def dense_part(name: str, checkpoint: Checkpoint, anchor: Checkpoint) -> Part:
    """A dense model that was trained as a whole, perhaps with tokens that the anchor lacks.

    Raises:
        BranchError: its tokenizer gives another id to one of the anchor's tokens.
    """
    tokens = added_tokens(anchor, checkpoint)
    return Part(name, checkpoint.source, checkpoint, checkpoint.pieces(), tokens=tokens)


def check_parts(anchor: Checkpoint, parts: Sequence[Part]) -> None:
    """Check that every part has the anchor's tensors in the anchor's shapes.

    Rows of the vocabulary may be more where a part has new tokens.

    Raises:
        BranchError: the first tensor that is missing or does not fit.
    """
    for part in parts:
        for key, stored in anchor.pieces().items():
            if key.component == "extra":
                continue
            given = part.pieces.get(key)
            if given is None:
                raise BranchError(f"{part.source}: lacks {stored.name}, which the anchor has")
            grown = bool(part.tokens) and key.component in VOCABULARY
            if grown and given.shape[0] <= max(part.tokens.values()):
                raise BranchError(
                    f"{part.source}: {given.name} has {given.shape[0]} rows, too few for token "
                    f"{max(part.tokens.values())} of its tokenizer"
                )
            if given.shape != stored.shape and not grown:
                raise BranchError(
                    f"{part.source}: {given.name} has shape {list(given.shape)}, the anchor's "
                    f"{list(stored.shape)}; expected equal shapes"
                )
