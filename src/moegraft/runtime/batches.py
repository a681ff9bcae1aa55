"""Token sequences as right-padded batches, longest first."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Batch(NamedTuple):
    """Some of the sequences, side by side.

    Padding stands on the right, where no token of a causal model can see it.
    """

    rows: list[int]
    """Which sequence each row is."""
    ids: Int[Tensor, "row token"]
    mask: Bool[Tensor, "row token"]
    """False on padding."""
    counted: Bool[Tensor, "row token"]
    """False on padding, and before each sequence's first token that counts."""


def batches(
    sequences: Sequence[Sequence[int]],
    max_tokens: int,
    device: torch.device,
    firsts: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Cut `sequences` into batches of at most `max_tokens` ids, padding included.

    Sequences of similar length share a batch; one that is longer than `max_tokens` gets its own.
    Empty ones are left out.

    Args:
        sequences: token ids.
        max_tokens: rows times the longest of them.
        device: where the tensors shall be.
        firsts: the first token of each sequence that counts; None for all tokens.
    """
    firsts = [0] * len(sequences) if firsts is None else firsts
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]), reverse=True)
    order = [i for i in order if len(sequences[i])]
    while order:
        width = len(sequences[order[0]])
        count = max(1, max_tokens // width)
        rows, order = order[:count], order[count:]
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.bool)
        for place, row in enumerate(rows):
            ids[place, : len(sequences[row])] = torch.tensor(sequences[row])
            mask[place, : len(sequences[row])] = True
        starts = torch.tensor([firsts[row] for row in rows])
        counted = mask & (torch.arange(width) >= starts[:, None])
        yield Batch(rows, ids.to(device), mask.to(device), counted.to(device))
