"""Intervals, tests and the noise floor of item scores, the paper's own ones included.

Scores are arrays aligned by item: row i of every array is the same question under the same
prompt. Aligning them, and refusing to when prompts differ, is the caller's work (report/items.py).
Where scipy or statsmodels has the method, theirs is called. Formulas and references of every
printed number stand in docs/statistics.md.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import bdtr
from statsmodels.stats.proportion import proportion_confint, proportions_ztest

NUM_RESAMPLES = 10_000
"""Bootstrap resamples, the paper's number."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided interval, both ends included."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the distance between the ends: the number after the ± in the paper's tables."""
        return (self.high - self.low) / 2

    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its interval."""

    value: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class ZTest:
    """Statistic and two-sided p of the two-proportion z-test."""

    z: float
    p: float


@dataclass(frozen=True, slots=True)
class McNemar:
    """Items only the first one solves, items only the second one solves, the rest, and p."""

    wins: int
    losses: int
    ties: int
    p: float


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """What changes when nothing but the batch plan changes (A/A control)."""

    num_items: int
    flips: int
    """Items whose score differs between the two passes."""
    max_difference: float
    """Largest absolute difference of one item's score."""
    mean_difference: float
    """Second pass minus first: the shift of the cell's mean."""


def wilson_interval(num_correct: int, num_items: int, level: float = 0.95) -> Interval:
    """Wilson's score interval: all p with |k/n - p| <= z sqrt(p(1-p)/n).

    Wilson 1927, JASA 22:209; never leaves [0, 1] and keeps its coverage at small n.
    """
    found: Any = proportion_confint(num_correct, num_items, alpha=1 - level, method="wilson")
    return Interval(float(found[0]), float(found[1]))


def bootstrap_interval(
    num_correct: int,
    num_items: int,
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap of a proportion: quantiles of Binomial(n, k/n)/n over the resamples.

    Resampling n zeros and ones with replacement is exactly a binomial draw (Efron 1979, Ann.
    Statist. 7:1), so no item is touched.
    """
    rng = np.random.default_rng(seed)
    draws = rng.binomial(num_items, num_correct / num_items, size=num_resamples) / num_items
    return percentile_interval(draws, level)


def two_proportion_z(correct_a: int, items_a: int, correct_b: int, items_b: int) -> ZTest:
    """The paper's test: z = (a - b) / sqrt(p(1-p)(1/n_a + 1/n_b)), p pooled; two-sided.

    It treats two passes over the same items as independent samples. On siblings that agree on
    most items it is far too cautious (true size .001-.015 at a nominal .05), hence `mcnemar`.
    When all answers are right, or all are wrong, z = 0 and p = 1.
    """
    if correct_a + correct_b in (0, items_a + items_b):
        return ZTest(0.0, 1.0)
    z, p = proportions_ztest([correct_a, correct_b], [items_a, items_b])
    return ZTest(float(z), float(p))


def mcnemar(a: Float[np.ndarray, "item"], b: Float[np.ndarray, "item"]) -> McNemar:
    """Exact McNemar test of 0/1 scores on the same items: wins ~ Binomial(wins + losses, 1/2).

    McNemar 1947, Psychometrika 12:153, in its exact two-sided form; p = 1 without discordant items.
    """
    assert is_binary(a) and is_binary(b), "McNemar's test is for 0/1 scores"
    wins, losses = int(np.sum(a > b)), int(np.sum(a < b))
    p = min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5))) if wins + losses else 1.0
    return McNemar(wins, losses, len(a) - wins - losses, p)


def noise_floor(a: Float[np.ndarray, "item"], b: Float[np.ndarray, "item"]) -> NoiseFloor:
    """Compare two passes of one configuration over the same items (A/A control).

    Flips = items with a_i != b_i; a difference between configurations of the size of the floor
    is arithmetic, not skill.
    """
    difference = b - a
    return NoiseFloor(
        num_items=len(a),
        flips=int(np.count_nonzero(difference)),
        max_difference=float(np.max(np.abs(difference), initial=0.0)),
        mean_difference=float(np.mean(difference)) if len(a) else 0.0,
    )


def is_binary(scores: Float[np.ndarray, "*axes"]) -> bool:
    """Whether every score is exactly 0 or 1, so that tests for proportions apply."""
    return bool(np.all((scores == 0) | (scores == 1)))


def percentile_interval(draws: Float[np.ndarray, "resample"], level: float = 0.95) -> Interval:
    """Quantiles of bootstrap draws that leave (1 - level) / 2 on either side."""
    tail = 50 * (1 - level)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(float(low), float(high))
