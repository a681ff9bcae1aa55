"""Two training recipes compared over several training seeds each, on the same items."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import t

from moegraft.stats.bootstrap import cluster_numbers
from moegraft.stats.inference import Estimate, Interval


@dataclass(frozen=True, slots=True)
class SeedTest:
    """Difference of two recipes, uncertain through their seeds and through the items."""

    estimate: Estimate
    p_value: float
    degrees: float
    """Degrees of freedom of the t distribution (Satterthwaite)."""
    seed_variance: float
    """Part of the estimate's variance that more seeds would lower."""
    item_variance: float
    """Part that more items would lower."""
    num_seeds: tuple[int, int]


def seed_test(
    a: Float[np.ndarray, "seed item"],
    b: Float[np.ndarray, "other item"],
    *,
    clusters: Sequence[str | None] | None = None,
    level: float = 0.95,
) -> SeedTest:
    """Compare recipes a and b, each trained with several seeds, all scored on the same items.

    Seeds and items are crossed random factors. Var(mean a - mean b) = s_a^2/S_a + s_b^2/S_b +
    s_d^2/K: s_a, s_b the deviations of the seeds' means, s_d that of the seed-averaged differences
    of the K clusters. Each seed's mean carries item noise of its own, so the sum counts that twice:
    the test is a little cautious, never bold. Degrees of freedom after Satterthwaite 1946.

    Args:
        a: scores, one row per seed; at least two.
        b: scores of the other recipe on the same items; at least two rows.
        clusters: what each item shares with others; None for items that stand alone.
        level: of the interval.
    """
    assert min(len(a), len(b)) >= 2, "a single seed says nothing about seeds: compare checkpoints"
    difference = a.mean(axis=0) - b.mean(axis=0)
    value = float(difference.mean())
    parts = [(float(np.var(arm.mean(axis=1), ddof=1)) / len(arm), len(arm) - 1) for arm in (a, b)]
    numbers = cluster_numbers(clusters, len(difference))
    spread = np.bincount(numbers, weights=difference - value)
    num = len(spread)
    items = float(np.sum(spread**2)) * num / max(1, num - 1) / len(difference) ** 2
    parts.append((items, max(1, num - 1)))
    variance = sum(part for part, _ in parts)
    if variance == 0:
        p = 1.0 if value == 0 else 0.0
        return SeedTest(Estimate(value, Interval(value, value)), p, 1.0, 0.0, 0.0, (len(a), len(b)))
    degrees = variance**2 / sum(part**2 / free for part, free in parts)
    error = float(np.sqrt(variance))
    half = float(t.isf((1 - level) / 2, degrees)) * error
    return SeedTest(
        estimate=Estimate(value, Interval(value - half, value + half)),
        p_value=2 * float(t.sf(abs(value) / error, degrees)),
        degrees=float(degrees),
        seed_variance=parts[0][0] + parts[1][0],
        item_variance=items,
        num_seeds=(len(a), len(b)),
    )
