"""The best of several: chosen and judged on disjoint items, and how much choosing flatters it."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from jaxtyping import Float, Int

from moegraft.stats.bootstrap import distinct_clusters, tallies
from moegraft.stats.inference import Estimate, Interval

_NUM_OUTER, _NUM_INNER = 200, 25


@dataclass(frozen=True, slots=True)
class BestOf:
    """The configuration with the highest mean, corrected for having been chosen for it."""

    column: int
    score: float
    """Its mean on the items that it was chosen on."""
    optimism: float
    """How much such a choice overstates the mean of what it chooses, on average."""
    corrected: Estimate
    """`score` less `optimism`, with the interval for the true mean of what was chosen."""


def split_halves(
    items: Sequence[str], clusters: Sequence[str | None] | None = None
) -> tuple[Int[np.ndarray, "half"], Int[np.ndarray, "rest"]]:
    """Places of the items to choose on, and of those to confirm on.

    Clusters are ordered by the sha256 of their name (an item without one, of its own) and dealt
    out in turn, so the split depends on nothing but the items, and no passage is on both sides.
    """
    names = [
        item if cluster is None else cluster
        for item, cluster in zip(items, clusters or [None] * len(items), strict=True)
    ]
    order = sorted(set(names), key=lambda name: sha256(f"halves {name}".encode()).digest())
    chosen = set(order[::2])
    sides = np.array([name in chosen for name in names], dtype=bool)
    return np.flatnonzero(sides), np.flatnonzero(~sides)


def best_of(
    scores: Float[np.ndarray, "item configuration"],
    *,
    seed: int,
    clusters: Sequence[str | None] | None = None,
    level: float = 0.95,
) -> BestOf:
    """The best column and a nested bootstrap of what choosing it is worth.

    An outer resample chooses its best column; inner resamples of it say how optimistic its mean
    is (Efron & Tibshirani 1993, ch. 17); the error of that corrected mean against the mean on the
    items themselves, over the outer resamples, gives the interval. Ties go to the first column.
    """
    rows, counts = distinct_clusters(scores, clusters)
    rng = np.random.default_rng(seed)
    means = scores.mean(axis=0)
    best = int(np.argmax(means))
    outer = tallies(rng, counts, _NUM_OUTER)
    centres = _means(outer, rows)
    optimism = _optimism(centres, means)
    errors = np.empty(_NUM_OUTER)
    for place, (weights, centre) in enumerate(zip(outer, centres, strict=True)):
        again = _means(tallies(rng, weights.astype(np.int64), _NUM_INNER), rows)
        errors[place] = centre.max() - _optimism(again, centre) - means[centre.argmax()]
    corrected = float(means[best]) - optimism
    tail = 50 * (1 - level)
    low, high = np.percentile(errors, [tail, 100 - tail])
    interval = Interval(corrected - float(high), corrected - float(low))
    return BestOf(best, float(means[best]), optimism, Estimate(corrected, interval))


def _optimism(
    draws: Float[np.ndarray, "resample column"], centre: Float[np.ndarray, "column"]
) -> float:
    """Mean of (best of a resample) - (its true mean), less what all columns share by chance."""
    gains = draws.max(axis=1) - centre[draws.argmax(axis=1)]
    shared = draws.mean(axis=1) - centre.mean()  # 0 on average: takes noise out, no bias in
    return max(0.0, float(np.mean(gains - shared)))


def _means(
    weights: Float[np.ndarray, "resample row"], rows: Float[np.ndarray, "row columns"]
) -> Float[np.ndarray, "resample column"]:
    totals = weights @ rows
    return totals[:, :-1] / totals[:, -1:]
