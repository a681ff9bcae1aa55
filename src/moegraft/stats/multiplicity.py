"""Correction for many tests: Holm, Benjamini-Hochberg, and max-T from one shared bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t

from moegraft.stats.inference import Interval


@dataclass(frozen=True, slots=True)
class MaxT:
    """Simultaneous intervals and adjusted p of several contrasts, in their order."""

    critical: float
    """What replaces 1.96: half-widths are this many standard errors."""
    intervals: tuple[Interval, ...]
    """All of them cover their contrasts at once with the asked probability."""
    p_values: tuple[float, ...]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: max over j <= i of min(1, (m - j + 1) p_(j)).

    Holm 1979, Scand. J. Statist. 6:65; keeps the family-wise error under any dependence.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.arange(len(p), 0, -1) * p[order]
    return _back(np.maximum.accumulate(steps), order)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Step-up adjustment for the false discovery rate: min over j >= i of min(1, m p_(j) / j).

    Benjamini & Hochberg 1995, JRSS B 57:289; for exploration, where a few false finds are fine.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = len(p) * p[order] / np.arange(1, len(p) + 1)
    return _back(np.minimum.accumulate(steps[::-1])[::-1], order)


def max_t(
    estimates: Float[np.ndarray, "contrast"],
    draws: Float[np.ndarray, "resample contrast"],
    *,
    floors: Float[np.ndarray, "contrast"] | None = None,
    degrees: int | None = None,
    level: float = 0.95,
) -> MaxT:
    """Single-step max-T: the quantile of max over contrasts of |draw - estimate| / se.

    Westfall & Young 1993, ch. 2. Less strict than Bonferroni because contrasts of the same items
    move together. Contrasts of conditions that share no items may stand side by side though their
    draws are independent; for conditions that do share items that is on the safe side (Gaussian
    correlation inequality, Royen 2014).

    Args:
        estimates: the contrasts.
        draws: the same contrasts in every resample.
        floors: a smallest standard error each, so that a contrast without a single discordant
            item does not get an interval of width 0.
        degrees: of freedom of the t distribution of a single contrast, whose critical value and p
            bound theirs from below: where no draw differs there is nothing to learn from draws.
        level: probability that all intervals cover.
    """
    if not len(estimates):
        return MaxT(0.0, (), ())
    errors = draws.std(axis=0)
    if floors is not None:
        errors = np.hypot(errors, floors)
    usable = errors > 0
    scaled = np.zeros(draws.shape)
    np.divide(np.abs(draws - estimates), errors, out=scaled, where=usable)
    largest = np.sort(scaled.max(axis=1))
    critical = float(np.quantile(largest, level, method="higher"))
    if degrees is not None:
        critical = max(critical, float(t.isf((1 - level) / 2, degrees)))
    statistics = np.zeros(len(estimates))
    np.divide(np.abs(estimates), errors, out=statistics, where=usable)
    above = len(largest) - np.searchsorted(largest, statistics, side="left")
    p_values = (1 + above) / (1 + len(largest))
    if degrees is not None:
        p_values = np.maximum(p_values, 2 * t.sf(statistics, degrees))
    return MaxT(
        critical,
        tuple(
            Interval(float(value - critical * error), float(value + critical * error))
            for value, error in zip(estimates, errors, strict=True)
        ),
        tuple(map(float, p_values)),
    )


def _back(adjusted: Float[np.ndarray, "test"], order: Int[np.ndarray, "test"]) -> list[float]:
    found = np.empty(len(order))
    found[order] = np.minimum(adjusted, 1.0)
    return found.tolist()
