"""Generation for models whose state cannot branch or be moved: batches of prompts of one length."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch

from moegraft.evals.judge import Generation
from moegraft.evals.sampling import Running, Writer, finish
from moegraft.evals.slots import Forward


def generate_plain(
    forward: Forward, writer: Writer, rows: Sequence[Running], max_rows: int
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
            _run(forward, writer, batch)
            yield from ((row.position, finish(row, writer.stopper)) for row in batch)


@torch.no_grad()
def _run(forward: Forward, writer: Writer, rows: list[Running]) -> None:
    ids = torch.tensor([row.prompt for row in rows], device=forward.device)
    cache = None
    for _ in range(writer.decoding.max_new_tokens):
        output = forward.model(
            input_ids=ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **forward.options,
        )
        cache = output.past_key_values
        chosen = writer.choose(rows, output.logits[:, -1])
        for row, token in zip(rows, chosen, strict=True):
            if not row.ended:
                row.tokens.append(token)
                row.ended = writer.stopper.is_done(row.tokens)
        if all(row.ended for row in rows):
            return
        ids = torch.tensor([[token] for token in chosen], device=forward.device)
