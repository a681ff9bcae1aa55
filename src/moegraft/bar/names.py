"""Canonical names of pieces: published, one per expert, with row ranges such as `gate.weight[0:1]`.

A manifest names what must not move. The names are those of the family's published layout,
whatever layout a trainer saves; a range of rows of the leading axis stands in brackets.
"""

import re
from collections.abc import Iterator, Mapping
from hashlib import sha256

from moegraft.checkpoint import Checkpoint, StoredPiece
from moegraft.checkpoint.tensors import hash_bytes
from moegraft.errors import BranchError
from moegraft.families import Family, Key, Rule
from moegraft.families.names import LEAVES

_ROWS = re.compile(r"(?P<name>.+)\[(?P<first>\d+):(?P<last>\d+)\]")


def published_name(family: Family, key: Key) -> str:
    """The name of the piece `key` where every expert has tensors of its own.

    Families that are published fused (gpt_oss) name the fused tensor's slice of one expert,
    `NAME[3:4]`.
    """
    fitting = [rule for rule in family.rules if rule.component == key.component]
    for rule in fitting:
        if not rule.stacked and ("{expert}" in rule.template) == (key.expert is not None):
            name = _filled(family, rule, key)
            if name is not None:
                return name
    for rule in fitting:
        name = _filled(family, rule, key) if rule.stacked else None
        if name is not None:
            return f"{name}[{key.expert}:{key.expert + 1}]" if key.expert is not None else name
    raise AssertionError(f"no rule of {family.name} names {key}")


def named_pieces(checkpoint: Checkpoint) -> dict[str, StoredPiece]:
    """Every piece of `checkpoint` by its canonical name, in stored order."""
    family = checkpoint.family
    return {published_name(family, key): stored for key, stored in checkpoint.pieces().items()}


def rows(stored: StoredPiece, first: int, last: int) -> StoredPiece:
    """Rows `first` to `last` (not included) of a piece's leading axis."""
    count = stored.shape[0]
    assert 0 <= first < last <= count, (stored.name, first, last)
    row = stored.nbytes // count
    piece = stored.piece._replace(
        shape=(last - first, *stored.shape[1:]),
        offset=stored.piece.offset + first * row,
        nbytes=(last - first) * row,
    )
    return StoredPiece(piece, stored.tensor)


def row_name(name: str, first: int, last: int) -> str:
    """How rows `first` to `last` of the piece `name` are called."""
    return f"{name}[{first}:{last}]"


def find_piece(pieces: Mapping[str, StoredPiece], name: str) -> StoredPiece:
    """The piece that `name` means, a range of rows included.

    Args:
        pieces: what `named_pieces` returns.
        name: a name of a manifest.

    Raises:
        BranchError: there is no such piece, or it has fewer rows.
    """
    if name in pieces:
        return pieces[name]
    match = _ROWS.fullmatch(name)
    whole = pieces.get(match["name"]) if match else None
    if match is None or whole is None:
        raise BranchError(f"{name}: the checkpoint has no such tensor")
    first, last = int(match["first"]), int(match["last"])
    if not 0 <= first < last <= whole.shape[0]:
        raise BranchError(f"{name}: the checkpoint has {whole.shape[0]} rows")
    return rows(whole, first, last)


def piece_hashes(checkpoint: Checkpoint, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Name and sha256 of the present bytes of every piece in `names`; 2 s per 4 GB.

    Raises:
        BranchError: as `find_piece`.
    """
    pieces = named_pieces(checkpoint)
    for name in names:
        yield name, hash_bytes(find_piece(pieces, name))


def experts_digest(checkpoint: Checkpoint, first: int) -> str:
    """Sha256 over the experts from index `first` on, whatever layout they are stored in."""
    digest = sha256()
    for name, stored in sorted(named_pieces(checkpoint).items()):
        key = stored.piece.key
        if key.component == "experts" and key.expert is not None and key.expert >= first:
            digest.update(f"{name} {hash_bytes(stored)}\n".encode())
    return digest.hexdigest()


def content_digest(checkpoint: Checkpoint) -> str:
    """Sha256 over all pieces by canonical name: the same for every layout."""
    digest = sha256()
    for name, stored in sorted(named_pieces(checkpoint).items()):
        digest.update(f"{name} {hash_bytes(stored)}\n".encode())
    return digest.hexdigest()


def _filled(family: Family, rule: Rule, key: Key) -> str | None:
    """The name that `rule` gives the piece `key`, if it describes it."""
    if "{any}" in rule.template:
        return None
    leaf = next((leaf for leaf in LEAVES if key.role in _roles(rule, leaf)), None)
    if leaf is None:
        return None
    return (
        rule.template.replace("{root}", family.roots[0])
        .replace("{layer}", str(key.layer))
        .replace("{expert}", str(key.expert))
        .replace("{leaf}", leaf)
    )


def _roles(rule: Rule, leaf: str) -> tuple[str, ...]:
    """The roles of the pieces of one of the rule's tensors."""
    if "{leaf}" not in rule.template:
        return rule.roles
    return tuple(f"{role}.{leaf}" for role in rule.roles)
