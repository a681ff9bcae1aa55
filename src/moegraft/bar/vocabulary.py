"""New tokens of a branch: ids from the anchor's tokenizer, and rows for them in the vocabulary."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from moegraft.bar.entries import byte_range, produced
from moegraft.bar.names import rows
from moegraft.checkpoint import Checkpoint, StoredPiece, load_tensor
from moegraft.checkpoint.writer import ByteRange, Entry, Produced
from moegraft.errors import BranchError
from moegraft.transfer.vocabulary import read_tokenizer

VOCABULARY = ("embedding", "lm_head")
"""Components with one row per token."""


@dataclass(frozen=True)
class NewTokens:
    """Tokens that a branch adds, and how their rows start."""

    ids: Mapping[str, int]
    """By token, consecutive."""
    num_old: int
    """Tokens that the anchor's tokenizer has; rows after them are padding."""
    num_rows: int
    """Rows of the vocabulary in the branch."""
    noise: float
    """Standard deviation of what is added to the mean row, in units of each column's own."""
    seed: int
    tokenizer: Any
    """The anchor's, extended."""

    def entry(self, stored: StoredPiece, name: str, salt: int) -> Entry:
        """The tensor `stored` with rows for the new tokens: old rows, new rows, padding."""
        first, count = min(self.ids.values()), len(self.ids)
        have = stored.shape[0]
        new = (count, *stored.shape[1:])
        fresh = produced(stored.dtype, new, partial(self._fresh, stored, salt))
        sources: list[ByteRange | Produced] = [byte_range(rows(stored, 0, first)), fresh]
        if have > first + count:
            sources.append(byte_range(rows(stored, first + count, have)))
        shape = (self.num_rows, *stored.shape[1:])
        return Entry(name, stored.dtype, shape, tuple(sources))

    def _fresh(self, stored: StoredPiece, salt: int) -> Any:
        import torch

        old = load_tensor(rows(stored, 0, self.num_old))
        mean = old.float().mean(0)
        fresh = mean.repeat(len(self.ids), 1)
        if self.noise:
            source = torch.Generator().manual_seed(self.seed * 2 + salt)
            spread = old.float().std(0) * self.noise
            fresh = fresh + torch.randn(fresh.shape, generator=source) * spread
        return fresh


def plan_tokens(
    anchor: Checkpoint, tokens: Sequence[str], *, noise: float, seed: int
) -> NewTokens | None:
    """Give each new token an id behind the anchor's last; None when there are none.

    They are added as whole tokens that decoding keeps, as the tool tags of released models are:
    a verifier that reads decoded text must see them. Where the anchor's vocabulary is padded, the
    first padding rows become theirs.

    Raises:
        BranchError: there is no tokenizer, a token is known already or repeated, or is empty.
    """
    if not tokens:
        return None
    from tokenizers import AddedToken

    from moegraft.runtime.tokens import load_tokenizer

    tokenizer = load_tokenizer(anchor)
    if tokenizer is None:
        raise BranchError(f"{anchor.source}: has no tokenizer that new tokens could be added to")
    known = tokenizer.get_vocab()
    for token in tokens:
        if token in known or tokens.count(token) > 1 or not token.strip():
            why = "is known already" if token in known else "is empty or stands twice"
            raise BranchError(f"new token {token!r} {why} (tokenizer of {anchor.source})")
    num_old = max(known.values()) + 1
    added: Any = [AddedToken(token, normalized=False) for token in tokens]
    tokenizer.add_tokens(added)
    found = tokenizer.get_vocab()
    ids = {token: int(found[token]) for token in tokens}
    if sorted(ids.values()) != list(range(num_old, num_old + len(ids))):
        raise BranchError(
            f"{anchor.source}: its tokenizer gives the new tokens ids {sorted(ids.values())}, "
            f"expected {num_old} and up"
        )
    have = min(stored.shape[0] for stored in vocabulary_pieces(anchor))
    if have < num_old:
        raise BranchError(f"{anchor.source}: {num_old} tokens but only {have} rows of embedding")
    return NewTokens(ids, num_old, max(have, num_old + len(ids)), noise, seed, tokenizer)


def added_tokens(anchor: Checkpoint, checkpoint: Checkpoint) -> dict[str, int]:
    """Tokens, with their ids, that `checkpoint` has beside the anchor's; none without tokenizers.

    Raises:
        BranchError: its tokenizer gives another id to one of the anchor's tokens.
    """
    ours, theirs = read_tokenizer(anchor).ids, read_tokenizer(checkpoint).ids
    if ours is None or theirs is None:
        return {}
    for index, token in sorted(ours.items()):
        if theirs.get(index) != token:
            raise BranchError(
                f"{checkpoint.source}: its tokenizer has {theirs.get(index)!r} at id {index}, the "
                f"anchor's {token!r}; expected the anchor's tokens and new ones behind them"
            )
    return {token: index for index, token in sorted(theirs.items()) if index not in ours}


def vocabulary_pieces(checkpoint: Checkpoint) -> Iterator[StoredPiece]:
    """The pieces with one row per token."""
    for key, stored in checkpoint.pieces().items():
        if key.component in VOCABULARY:
            yield stored


def vocabulary_rows(checkpoint: Checkpoint) -> int:
    """Rows of the embedding."""
    return next(
        s.shape[0] for key, s in checkpoint.pieces().items() if key.component == "embedding"
    )
