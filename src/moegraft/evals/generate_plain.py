"""Generation for models whose state cannot branch or be moved: batches of prompts of one length."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch

from moegraft.evals.condition import Decoding
from moegraft.evals.generate import Running, Stopper, finish
from moegraft.evals.judge import Generation
from moegraft.evals.slots import Forward


@torch.no_grad()
def generate_plain(
    forward: Forward,
    stopper: Stopper,
    rows: Sequence[Running],
    decoding: Decoding,
    choose: Any,
    max_rows: int,
) -> Iterator[tuple[int, Generation]]:
    """As `generate.generations`, with the model's own cache and without padding.

    State-space layers read padding as input, so only prompts of equal length run together; a
    finished row stays in its batch until the batch is done.
    """
    by_length = sorted(rows, key=lambda row: len(row.prompt), reverse=True)
    for _, group in groupby(by_length, key=lambda row: len(row.prompt)):
        same = list(group)
        for first in range(0, len(same), max_rows):
            batch = same[first : first + max_rows]
            _run(forward, stopper, batch, decoding.max_new_tokens, choose)
            yield from ((row.position, finish(row, stopper)) for row in batch)


def _run(
    forward: Forward, stopper: Stopper, rows: list[Running], budget: int, choose: Any
) -> None:
    ids = torch.tensor([row.prompt for row in rows], device=forward.device)
    cache = None
    for _ in range(budget):
        output = forward.model(
            input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1,
            **forward.options,
        )  # fmt: skip
        cache = output.past_key_values
        chosen = choose(rows, output.logits[:, -1])
        for row, token in zip(rows, chosen, strict=True):
            if not row.ended:
                row.tokens.append(token)
                row.ended = stopper.is_done(row.tokens)
        if all(row.ended for row in rows):
            return
        ids = torch.tensor([[token] for token in chosen], device=forward.device)
