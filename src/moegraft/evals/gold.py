"""Gold log-probability of items: measured as a sweep does, or as a function to differentiate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moegraft.errors import EvalDataError
from moegraft.evals.condition import Item, Pair
from moegraft.evals.likelihood import fit, likelihoods
from moegraft.evals.slots import Forward, picked

MAX_TOKENS = 4096
"""Tokens of one forward pass."""


@dataclass(frozen=True, slots=True)
class GoldBatch:
    """Some items with their gold answers, right-padded, and where the answers are read off."""

    num_items: int
    ids: Int[Tensor, "row token"]
    mask: Bool[Tensor, "row token"]
    rows: Int[Tensor, " read"]
    columns: Int[Tensor, " read"]
    """Logits at (row, column) predict the answer's next token."""
    targets: Int[Tensor, " read"]


def gold_logprobs(
    host: Any, items: Sequence[Item], *, max_tokens: int = MAX_TOKENS
) -> Float[np.ndarray, " item"]:
    """Log-probability of each item's gold answer, as `gold_logprob` of a sweep's rows.

    Args:
        host: a `runtime.Host`, with whatever is swapped in at the moment.
        items: each with a gold answer.
        max_tokens: tokens of one forward pass.

    Returns:
        float64, in nats, summed over the answer's tokens.

    Raises:
        EvalDataError: an item has no gold answer.
    """
    forward = Forward(host.model)
    if not host.checkpoint.family.branching_cache:
        forward.shares = False
    found = dict(likelihoods(forward, gold_pairs(items), max_tokens))
    return np.array([found[i].logprob for i in range(len(items))], dtype=np.float64)


def gold_pairs(items: Sequence[Item]) -> list[Pair]:
    """The teacher-forced answers of `items`. Raises EvalDataError when one has none."""
    pairs = [item.gold_pair for item in items if item.gold_pair and item.gold_pair.continuation]
    if len(pairs) < len(items):
        raise EvalDataError(
            f"{len(items) - len(pairs)} of {len(items)} items have no gold answer to be scored; "
            "choose a condition whose task has one"
        )
    return pairs


def gold_batches(
    model: Any, items: Sequence[Item], *, max_tokens: int = MAX_TOKENS
) -> list[GoldBatch]:
    """Batches of about `max_tokens` tokens, items of similar length together.

    The token ids, and where long prompts are cut, are those of `gold_logprobs`.

    Raises:
        EvalDataError: an item has no gold answer.
    """
    forward = Forward(model)
    pairs = sorted(
        (fit(pair, forward.max_length) for pair in gold_pairs(items)),
        key=lambda pair: len(pair.context) + len(pair.continuation),
    )
    batches = []
    while pairs:
        width = len(pairs[-1].context) + len(pairs[-1].continuation) - 1
        count = max(1, max_tokens // width)
        batches.append(_batch(pairs[-count:], width, forward.device))
        del pairs[-count:]
    return batches


def gold_logprob_sum(model: Any, batch: GoldBatch) -> Float[Tensor, ""]:
    """Sum over the items of their gold answers' log-probability, differentiable, in float32."""
    with picked(model, (batch.rows, batch.columns)):
        logits = model(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            use_cache=False,
            **Forward(model).options,
        ).logits[0]
    targets = batch.targets[:, None].to(logits.device)
    return logits.float().log_softmax(-1).gather(1, targets).sum()


def _batch(pairs: Sequence[Pair], width: int, device: torch.device) -> GoldBatch:
    ids = torch.zeros((len(pairs), width), dtype=torch.long)
    mask = torch.zeros((len(pairs), width), dtype=torch.bool)
    read: list[tuple[int, int, int]] = []
    for row, pair in enumerate(pairs):
        own = (pair.context + pair.continuation)[:-1]
        ids[row, : len(own)] = torch.tensor(own)
        mask[row, : len(own)] = True
        first = len(pair.context) - 1
        read += [(row, first + k, target) for k, target in enumerate(pair.continuation)]
    rows, columns, targets = torch.tensor(read).T.to(device)
    return GoldBatch(len(pairs), ids.to(device), mask.to(device), rows, columns, targets)
