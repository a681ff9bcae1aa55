"""How probable finetuned models find the gold answers: arms compared over seeds and items."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from moegraft.stats import holm, seed_test

Rows = Mapping[str, Mapping[str, Any]]
"""Item rows of one model by item."""


def compare_gold(arms: Mapping[str, Sequence[Rows]]) -> dict[str, Any]:
    """Mean log-probability of the gold answer, in nats per item, and how arms differ in it.

    Args:
        arms: rows of each seed; all models answered the same items.

    Returns:
        `seeds`, each arm's means; `comparisons`, every pair with difference (a - b), 95 % interval
        for new seeds and items, p, and p after Holm. Both empty where items have no gold answer.
    """
    first = next(iter(arms.values()))[0]
    items = [item for item, row in first.items() if row["gold_logprob"] is not None]
    if not items:
        return {"seeds": {}, "comparisons": []}
    scores = {arm: _matrix(seeds, items) for arm, seeds in arms.items()}
    clusters = [first[item]["cluster"] for item in items]
    pairs = [*combinations(scores, 2)]
    tests = [seed_test(scores[a], scores[b], clusters=clusters) for a, b in pairs]
    comparisons = []
    for (a, b), test, adjusted in zip(pairs, tests, holm([t.p_value for t in tests]), strict=True):
        interval = test.estimate.interval
        comparisons.append(
            {
                "a": a,
                "b": b,
                "difference": test.estimate.value,
                "interval": [interval.low, interval.high],
                "p": test.p_value,
                "adjusted_p": adjusted,
            }
        )
    means = {arm: [float(mean) for mean in own.mean(axis=1)] for arm, own in scores.items()}
    return {"seeds": means, "comparisons": comparisons}


def gold_sentence(test: Mapping[str, Any]) -> str:
    """One comparison in words."""
    low, high = test["interval"]
    p = test["adjusted_p"]
    said = "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".", 1)
    return (
        f"Log p of gold: {test['a']} - {test['b']} = {test['difference']:+.2f} nats "
        f"[{low:+.2f}, {high:+.2f}], adjusted {said}."
    )


def _matrix(seeds: Sequence[Rows], items: Sequence[str]) -> Float[np.ndarray, "seed item"]:
    return np.array([[rows[item]["gold_logprob"] for item in items] for rows in seeds])
