"""The vocabulary of a merge: the union of the branches' new tokens, by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from moegraft.bar.average import Shared, mean
from moegraft.bar.entries import byte_range, produced
from moegraft.bar.names import rows
from moegraft.bar.parts import Part
from moegraft.bar.vocabulary import plan_tokens
from moegraft.checkpoint import Checkpoint, StoredPiece, load_tensor
from moegraft.checkpoint.writer import ByteRange, Entry, Produced


@dataclass(frozen=True)
class MergedTokens:
    """New tokens of a merge: their ids, and which models have a row for each."""

    ids: Mapping[str, int]
    num_old: int
    """Tokens of the anchor's tokenizer."""
    num_rows: int
    """Rows of the merged vocabulary."""
    owners: Mapping[str, Sequence[tuple[int, int]]]
    """By token: index among anchor and parts, and its row there."""
    tokenizer: Any

    def entry(
        self,
        name: str,
        component: str,
        shared: Shared,
        pieces: Sequence[StoredPiece],
        policy: str,
    ) -> Entry:
        """The tensor `name`: old rows as any shared tensor, new rows averaged over their owners.

        Args:
            name: of the output's tensor.
            component: `embedding` or `lm_head`.
            shared: the merge's shared tensors.
            pieces: of the anchor and all parts.
            policy: for the old rows.
        """
        old = [rows(piece, 0, self.num_old) for piece in pieces]
        sources: list[ByteRange | Produced] = [shared.source(name, component, old, policy)]
        for token in self.ids:
            own = [rows(pieces[model], row, row + 1) for model, row in self.owners[token]]
            if len(own) == 1 and own[0].dtype == pieces[0].dtype:
                sources.append(byte_range(own[0]))
            else:
                shape = (1, *pieces[0].shape[1:])
                sources.append(produced(pieces[0].dtype, shape, partial(_mean_of, own)))
        behind, have = self.num_old + len(self.ids), pieces[0].shape[0]
        if behind < have:
            sources.append(byte_range(rows(pieces[0], behind, have)))
        return Entry(name, pieces[0].dtype, (self.num_rows, *pieces[0].shape[1:]), tuple(sources))


def merge_tokens(anchor: Checkpoint, parts: Sequence[Part]) -> MergedTokens | None:
    """Unite the parts' new tokens, in the order of the parts; None when there are none.

    Two branches that added the same token share it; different tokens with the same id get ids of
    their own.

    Raises:
        BranchError: the anchor has no tokenizer.
    """
    union = list(dict.fromkeys(token for part in parts for token in part.tokens))
    planned = plan_tokens(anchor, union, noise=0.0, seed=0)
    if planned is None:
        return None
    owners = {
        token: [(i, part.tokens[token]) for i, part in enumerate(parts, 1) if token in part.tokens]
        for token in union
    }
    return MergedTokens(planned.ids, planned.num_old, planned.num_rows, owners, planned.tokenizer)


def _mean_of(own: Sequence[StoredPiece]) -> Any:
    return mean([load_tensor(row) for row in own])
