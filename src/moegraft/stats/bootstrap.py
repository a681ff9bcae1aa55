"""One resampling of items, or of clusters of items, that every configuration shares."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from moegraft.stats.inference import NUM_RESAMPLES, Estimate, percentile_interval

_CHUNK_BYTES = 2**19
_BINOMIAL_COST = 20
"""Drawing one binomial count takes about as long as drawing so many items."""


def cluster_numbers(
    clusters: Sequence[str | None] | None, num_items: int
) -> Int[np.ndarray, "item"]:
    """The number of each item's cluster; an item without a cluster is one of its own."""
    if clusters is None:
        return np.arange(num_items)
    assert len(clusters) == num_items, "one cluster, or None, per item"
    numbers: dict[str | int, int] = {}
    keys = (place if name is None else name for place, name in enumerate(clusters))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class ItemBootstrap:
    """One resampling of items shared by all configurations of a condition.

    Every resample draws the same items for every column, so differences, effects and ratios of
    columns keep the pairing (Efron & Tibshirani 1993, ch. 8; Miller 2024, arXiv:2411.00640).
    Items of one cluster are drawn together (Davison & Hinkley 1997, section 3.8).
    """

    means: Float[np.ndarray, "column"]
    draws: Float[np.ndarray, "resample column"]
    num_items: int
    num_clusters: int

    @classmethod
    def of(
        cls,
        scores: Float[np.ndarray, "item column"],
        *,
        seed: int,
        num_resamples: int = NUM_RESAMPLES,
        clusters: Sequence[str | None] | None = None,
    ) -> "ItemBootstrap":
        """Resample the clusters of `scores`' rows; without `clusters`, the rows.

        A mean of a resample is the sum of its scores over the number of its items, which varies
        where clusters differ in size. Only how often each distinct row occurs matters, so with
        few distinct rows (0/1 scores) one multinomial draw over them replaces n draws of items:
        the same distribution. The result does not depend on the order of items.
        """
        rows, counts = distinct_clusters(scores, clusters)
        totals = resampled_totals(rows, counts, np.random.default_rng(seed), num_resamples)
        draws = totals[:, :-1] / totals[:, -1:]
        return cls(scores.mean(axis=0), draws, len(scores), int(counts.sum()))

    def estimate(self, weights: Float[np.ndarray, "column"], level: float = 0.95) -> Estimate:
        """A linear combination of the columns' means with its percentile interval.

        A unit vector gives a mean, (1, -1) a paired difference, a contrast a factorial effect.
        """
        interval = percentile_interval(self.draws @ weights, level)
        return Estimate(float(self.means @ weights), interval)

    def gap_recovered(
        self, column: int, host: int, donor: int, level: float = 0.95
    ) -> Estimate | None:
        """(configuration - host) / (donor - host), or None where no gap is established.

        A gap is established when the paired interval of donor - host excludes 0; resamples with
        a gap of exactly 0 have no ratio and are left out of the interval.
        """
        gap = self.estimate(self.contrast(donor, host), level)
        if not gap.interval.excludes_zero():
            return None
        gaps = self.draws[:, donor] - self.draws[:, host]
        gains = self.draws[:, column] - self.draws[:, host]
        defined = gaps != 0
        value = float((self.means[column] - self.means[host]) / gap.value)
        return Estimate(value, percentile_interval(gains[defined] / gaps[defined], level))

    def difference(self, a: int, b: int, level: float = 0.95) -> Estimate:
        """Mean of column a minus mean of column b, paired by item."""
        return self.estimate(self.contrast(a, b), level)

    def contrast(self, plus: int, minus: int) -> Float[np.ndarray, "column"]:
        """The weights of column `plus` minus column `minus`."""
        weights = np.zeros(len(self.means))
        weights[plus] += 1.0
        weights[minus] -= 1.0
        return weights


def distinct_clusters(
    scores: Float[np.ndarray, "item column"], clusters: Sequence[str | None] | None
) -> tuple[Float[np.ndarray, "row columns"], Int[np.ndarray, "row"]]:
    """Distinct rows of (summed scores, number of items) of the clusters, and how often each is."""
    num_items, num_columns = scores.shape
    numbers = cluster_numbers(clusters, num_items)
    sums = np.zeros((int(numbers.max(initial=-1)) + 1, num_columns + 1))
    np.add.at(sums, numbers, np.column_stack([scores, np.ones(num_items)]))
    return np.unique(sums, axis=0, return_counts=True)


def resampled_totals(
    rows: Float[np.ndarray, "row columns"],
    counts: Int[np.ndarray, "row"],
    rng: np.random.Generator,
    num_resamples: int,
) -> Float[np.ndarray, "resample columns"]:
    """Sums over the rows of resamples of sum(counts) rows, a few resamples in memory at a time."""
    totals = np.empty((num_resamples, rows.shape[1]))
    step = max(1, _CHUNK_BYTES // (8 * int(counts.sum())))
    for start in range(0, num_resamples, step):
        part = totals[start : start + step]
        part[:] = tallies(rng, counts, len(part)) @ rows
    return totals


def tallies(
    rng: np.random.Generator, counts: Int[np.ndarray, "row"], num_resamples: int
) -> Float[np.ndarray, "resample row"]:
    """How often each distinct row is drawn in resamples of sum(counts), the cheaper of two ways."""
    total, num_rows = int(counts.sum()), len(counts)
    if total > _BINOMIAL_COST * num_rows:
        return rng.multinomial(total, counts / total, size=num_resamples).astype(np.float64)
    drawn = rng.integers(total, size=(num_resamples, total), dtype=np.int64)
    if num_rows < total:
        drawn = np.repeat(np.arange(num_rows), counts)[drawn]
    drawn += num_rows * np.arange(num_resamples)[:, None]
    found = np.bincount(drawn.ravel(), minlength=num_rows * num_resamples)
    return found.reshape(num_resamples, num_rows).astype(np.float64)
