"""Two training recipes compared over several training seeds each, on the same items."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t

from moegraft.stats.bootstrap import cluster_numbers
from moegraft.stats.inference import Estimate, Interval
from moegraft.stats.paired import sign_flip_p


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
    lasting_variance: float
    """Part of `seed_variance` that would be left with any number of items: a seed's mean also
    carries the noise of how that seed does on single items, which is taken off here."""
    num_seeds: tuple[int, int]

    @property
    def error(self) -> float:
        """Standard error of the difference."""
        return float(np.sqrt(self.seed_variance + self.item_variance))


def seed_test(
    a: Float[np.ndarray, "seed item"],
    b: Float[np.ndarray, "other item"],
    *,
    clusters: Sequence[str | None] | None = None,
    weights: Float[np.ndarray, "item"] | None = None,
    strata: Sequence[str] | None = None,
    level: float = 0.95,
) -> SeedTest:
    """Compare recipes a and b, each trained with several seeds, all scored on the same items.

    Seeds and items are crossed random factors. Var(mean a - mean b) = s_a^2/S_a + s_b^2/S_b +
    s_d^2/K: s_a, s_b the deviations of the seeds' means, s_d that of the seed-averaged differences
    of the K clusters. Each seed's mean carries item noise of its own, so the sum counts that twice:
    the test is a little cautious, never bold. Degrees of freedom after Satterthwaite 1946. On few
    items a t test would be bold, most of all where one recipe is ahead on every one of them: p is
    at least that of the sign flips of the seed-averaged differences, which is exact there.

    Args:
        a: scores, one row per seed; at least two.
        b: scores of the other recipe on the same items; at least two rows.
        clusters: what each item shares with others; None for items that stand alone.
        weights: of the items in every mean, summing to 1; None for equal ones.
        strata: which condition an item is of, where several are pooled: the items' variance is
            that within conditions.
        level: of the interval.
    """
    assert min(len(a), len(b)) >= 2, "a single seed says nothing about seeds: compare checkpoints"
    items = _Items.of(a.shape[1], clusters, weights, strata)
    difference = a.mean(axis=0) - b.mean(axis=0)
    seeds = [_seed_part(arm, items) for arm in (a, b)]
    parts = [*seeds, items.part(difference, at_least_one=True)]
    estimate, p, degrees = _combine(items.mean(difference), parts, level)
    whole = 1 if weights is not None else len(difference) * lcm(len(a), len(b))
    p = max(p, sign_flip_p(whole * items.sums(difference)))  # whole numbers where scores are 0/1
    noise = [_item_noise(arm, items) for arm in (a, b)]
    lasting = [max(0.0, part - own) for (part, _), own in zip(seeds, noise, strict=True)]
    return SeedTest(
        estimate=estimate,
        p_value=p,
        degrees=degrees,
        seed_variance=seeds[0][0] + seeds[1][0],
        item_variance=parts[2][0],
        lasting_variance=sum(lasting),
        num_seeds=(len(a), len(b)),
    )


def seed_mean(
    scores: Float[np.ndarray, "seed item"],
    *,
    clusters: Sequence[str | None] | None = None,
    weights: Float[np.ndarray, "item"] | None = None,
    strata: Sequence[str] | None = None,
    level: float = 0.95,
) -> Estimate:
    """Mean score of a recipe over its seeds, uncertain through seeds and items; see `seed_test`."""
    items = _Items.of(scores.shape[1], clusters, weights, strata)
    column = scores.mean(axis=0)
    parts = [_seed_part(scores, items), items.part(column, at_least_one=True)]
    return _combine(items.mean(column), parts, level)[0]


def paired_seed_test(
    differences: Float[np.ndarray, "seed item"],
    *,
    clusters: Sequence[str | None] | None = None,
    weights: Float[np.ndarray, "item"] | None = None,
    strata: Sequence[str] | None = None,
    level: float = 0.95,
) -> tuple[Estimate, float]:
    """Mean difference of two recipes that share each seed's data order and fresh weights, and p.

    As `seed_test`, but what a seed does to both recipes alike is no noise here: the deviation that
    counts is that of the seeds' differences. At least two seeds.
    """
    assert len(differences) >= 2, "a single seed says nothing about seeds: compare checkpoints"
    items = _Items.of(differences.shape[1], clusters, weights, strata)
    column = differences.mean(axis=0)
    parts = [_seed_part(differences, items), items.part(column)]
    return _combine(items.mean(column), parts, level)[:2]


@dataclass(frozen=True, slots=True)
class _Items:
    """How the items enter a mean, and which of them are drawn together."""

    weights: Float[np.ndarray, "item"]
    clusters: Int[np.ndarray, "item"]
    strata: Int[np.ndarray, "item"]

    @classmethod
    def of(
        cls,
        num_items: int,
        clusters: Sequence[str | None] | None,
        weights: Float[np.ndarray, "item"] | None,
        strata: Sequence[str] | None,
    ) -> "_Items":
        return cls(
            np.full(num_items, 1 / num_items) if weights is None else weights,
            cluster_numbers(clusters, num_items),
            cluster_numbers(strata or ("",) * num_items, num_items),
        )

    def mean(self, column: Float[np.ndarray, "item"]) -> float:
        return float(self.weights @ column)

    def sums(self, column: Float[np.ndarray, "item"]) -> Float[np.ndarray, "cluster"]:
        """What each cluster adds to the mean."""
        return np.bincount(self.clusters, weights=self.weights * column)

    def part(
        self, column: Float[np.ndarray, "item"], *, at_least_one: bool = False
    ) -> tuple[float, int]:
        """Variance of the mean through the items, and its degrees of freedom.

        Args:
            column: one number per item.
            at_least_one: not below the square of what one cluster adds, as another one might add
                nothing: few scores of 0 and 1 that all say the same are no proof that all would.
        """
        totals = np.bincount(self.strata, weights=self.weights * column)
        means = totals / np.bincount(self.strata, weights=self.weights)
        spread = self.sums(column - means[self.strata])
        num = len(spread)
        variance = float(np.sum(spread**2)) * num / max(1, num - 1)
        if at_least_one:
            variance = max(variance, float(np.max(self.sums(column) ** 2)))
        return variance, max(1, num - 1)


def _seed_part(arm: Float[np.ndarray, "seed item"], items: _Items) -> tuple[float, int]:
    return float(np.var(arm @ items.weights, ddof=1)) / len(arm), len(arm) - 1


def _item_noise(arm: Float[np.ndarray, "seed item"], items: _Items) -> float:
    """Part of `_seed_part` that comes from the items: seeds differ on single ones (interaction)."""
    residuals = arm - arm.mean(axis=0)
    return float(np.mean([items.part(row)[0] for row in residuals])) / (len(arm) - 1)


def _combine(
    value: float, parts: Sequence[tuple[float, int]], level: float
) -> tuple[Estimate, float, float]:
    """Estimate, p of being 0, and degrees of freedom, from independent parts of the variance."""
    variance = sum(part for part, _ in parts)
    if variance < 1e-24:  # nothing but rounding
        p = 1.0 if abs(value) < 1e-12 else 0.0
        return Estimate(value, Interval(value, value)), p, 1.0
    degrees = float(variance**2 / sum(part**2 / free for part, free in parts))
    error = float(np.sqrt(variance))
    half = float(t.isf((1 - level) / 2, degrees)) * error
    p = 2 * float(t.sf(abs(value) / error, degrees))
    return Estimate(value, Interval(value - half, value + half)), p, degrees
