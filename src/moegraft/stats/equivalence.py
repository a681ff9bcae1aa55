"""Whether nothing was lost, and whether two are as good as equal: tests against a margin."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv, gammaln, ndtr, stdtr, stdtrit, xlog1py, xlogy

from moegraft.stats.bootstrap import cluster_numbers
from moegraft.stats.inference import Estimate, Interval, is_binary

Verdict = Literal["pass", "regressed", "inconclusive"]

_OUTSIDE = 1e-3
"""Chance that the true discordance lies outside the values over which the p is maximised."""
_NUM_NUISANCE = 25
_TINY = 1e-9


@dataclass(frozen=True, slots=True)
class NonInferiority:
    """One-sided test that `new` is not worse than `old` by the margin or more."""

    margin: float
    estimate: Estimate
    """Mean of new minus mean of old; both ends are one-sided 1 - alpha bounds."""
    lower: float
    """The lower end: above -margin exactly when the verdict is `pass`."""
    p_value: float
    """Of the hypothesis that new - old <= -margin; `pass` below alpha."""
    verdict: Verdict
    """`regressed`: a loss is established (upper end below 0) and no pass; else `inconclusive`."""


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Two one-sided tests that a and b differ by less than the margin (Schuirmann 1987)."""

    margin: float
    estimate: Estimate
    """Mean of a minus mean of b with the 1 - 2 alpha interval, inside the margin if `matches`."""
    p_value: float
    """The larger of the two one-sided p."""
    matches: bool


def noninferiority(
    new: Float[np.ndarray, "item"],
    old: Float[np.ndarray, "item"],
    margin: float,
    *,
    clusters: Sequence[str | None] | None = None,
    alpha: float = 0.05,
) -> NonInferiority:
    """Test that `new` lost less than `margin` against `old` on the same items.

    0/1 scores of items that stand alone: the exact unconditional test that orders tables by
    Tango's score statistic (Hsueh, Liu & Chen 2001, Biometrics 57:478), with the nuisance
    parameter confined as in Berger & Boos 1994 (JASA 89:1012), so that the level holds at any
    number of items. Otherwise the score test of `score_p`. The bounds invert the score test
    (Tango 1998, Stat. Med. 17:891) and are kept on the side of the margin that the p says.

    Args:
        new: scores in [0, 1].
        old: scores of the same items.
        margin: the loss that must be ruled out, as a fraction.
        clusters: what each item shares with others; None for items that stand alone.
        alpha: one-sided level.
    """
    assert margin > 0, "a margin of 0 is a test of superiority"
    pairs = _Pairs.of(new, old, clusters)
    p = pairs.p(-margin)
    lower = _bound(pairs, alpha)
    upper = -_bound(pairs.swapped(), alpha)
    passed, lost = p < alpha, pairs.swapped().p(0.0) < alpha
    lower = max(lower, _TINY - margin) if passed else min(lower, -margin)
    upper = min(upper, -_TINY) if lost else max(upper, 0.0)
    verdict: Verdict = "pass" if passed else "regressed" if lost else "inconclusive"
    estimate = Estimate(pairs.mean, Interval(min(lower, pairs.mean), max(upper, pairs.mean)))
    return NonInferiority(margin, estimate, lower, p, verdict)


def equivalence(
    a: Float[np.ndarray, "item"],
    b: Float[np.ndarray, "item"],
    margin: float,
    *,
    clusters: Sequence[str | None] | None = None,
    alpha: float = 0.05,
) -> Equivalence:
    """Test that a and b differ by less than `margin` either way; methods as `noninferiority`."""
    assert margin > 0, "nothing is equal within a margin of 0"
    pairs = _Pairs.of(a, b, clusters)
    swapped = pairs.swapped()
    sides = (pairs.p(-margin), swapped.p(-margin))
    ends = []
    for p, bound in zip(sides, (_bound(pairs, alpha), _bound(swapped, alpha)), strict=True):
        ends.append(max(bound, _TINY - margin) if p < alpha else min(bound, -margin))
    interval = Interval(ends[0], -ends[1])
    return Equivalence(margin, Estimate(pairs.mean, interval), max(sides), max(sides) < alpha)


def equivalence_by_error(
    difference: float, error: float, degrees: float, margin: float, *, alpha: float = 0.05
) -> Equivalence:
    """The two one-sided t tests of a difference whose standard error is known (seeds and items).

    Args:
        difference: of two means.
        error: its standard error.
        degrees: of freedom of the error.
        margin: within which the two count as equal.
        alpha: one-sided level.
    """
    assert margin > 0, "nothing is equal within a margin of 0"
    room, half = margin - abs(difference), float(stdtrit(degrees, 1 - alpha)) * error
    p = float(stdtr(degrees, -room / error)) if error > 0 else float(room <= 0)
    interval = Interval(difference - half, difference + half)
    return Equivalence(margin, Estimate(difference, interval), p, p < alpha)


def score_p(
    sums: Float[np.ndarray, "cluster"],
    sizes: Float[np.ndarray, "cluster"],
    null: float,
    *,
    bound: float = 1.0,
) -> float:
    """One-sided p that the mean difference is at most `null`, by a score test over clusters.

    T = sum(D_c - null n_c) / sqrt(variance under the null), where the null distribution is the
    most likely one on the observed clusters, and on an unobserved one as large as the largest that
    loses everything, with mean `null` (empirical likelihood, Owen 1988), against t with K - 1
    degrees of freedom. K = (sum n_c^2)^2 / sum n_c^4, the number of clusters where they are equally
    large, is Satterthwaite's where the items of a cluster stand or fall together: a few large
    clusters among many single items are few, wherever the discordance is.
    For 0/1 scores of single items T is Tango's statistic. Unlike a t-test it does not call a
    margin safe because no loss was seen.

    Args:
        sums: summed difference of each cluster.
        sizes: its number of items.
        null: the hypothesis, between -bound and bound.
        bound: largest possible loss of one item.
    """
    statistic = _score(sums, sizes, null, bound)
    num = float(np.sum(sizes**2) ** 2 / np.sum(sizes**4))
    return float(stdtr(num - 1, -statistic * np.sqrt((num - 1) / num))) if num > 1.5 else 1.0


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Differences of one comparison, by cluster; `table` where McNemar's table says it all."""

    sums: Float[np.ndarray, "cluster"]
    sizes: Float[np.ndarray, "cluster"]
    bound: float
    table: tuple[int, int] | None

    @classmethod
    def of(
        cls,
        a: Float[np.ndarray, "item"],
        b: Float[np.ndarray, "item"],
        clusters: Sequence[str | None] | None,
    ) -> "_Pairs":
        assert a.shape == b.shape and len(a), "the same items, at least one"
        numbers = cluster_numbers(clusters, len(a))
        sums = np.bincount(numbers, weights=a - b)
        sizes = np.bincount(numbers).astype(np.float64)
        binary = is_binary(a) and is_binary(b) and len(sums) == len(a)
        table = (int(np.sum(a > b)), int(np.sum(a < b))) if binary else None
        return cls(sums, sizes, max(1.0, float(np.max(np.abs(a - b)))), table)

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.sizes.sum())

    def swapped(self) -> "_Pairs":
        table = None if self.table is None else (self.table[1], self.table[0])
        return _Pairs(-self.sums, self.sizes, self.bound, table)

    def p(self, null: float) -> float:
        if self.table is not None:
            return _unconditional_p(*self.table, len(self.sums), null)
        return score_p(self.sums, self.sizes, null, bound=self.bound)

    def quick_p(self, null: float) -> float:
        if self.table is not None:
            wins, losses = (np.array([count]) for count in self.table)
            return float(ndtr(-_tango(wins, losses, len(self.sums), null)[0]))
        return self.p(null)


def _bound(pairs: _Pairs, alpha: float) -> float:
    """The lowest mean difference that the score test does not reject at `alpha`."""
    floor = -pairs.bound * (1 - 1e-6)
    if pairs.mean <= floor or pairs.quick_p(floor) >= alpha:
        return -pairs.bound
    top = min(pairs.mean, -floor)
    if pairs.quick_p(top) <= alpha:
        return top
    return cast(float, brentq(lambda null: pairs.quick_p(null) - alpha, floor, top, xtol=1e-7))


def _tango(
    wins: Int[np.ndarray, "table"], losses: Int[np.ndarray, "table"], num_items: int, null: float
) -> Float[np.ndarray, "table"]:
    """Tango's statistic (b - c - n d) / sqrt(n (2 q + d (1 - d))), q the likeliest loss rate."""
    linear = wins + losses - (2 * num_items - wins + losses) * null
    inner = np.maximum(linear**2 + 8 * num_items * losses * null * (1 - null), 0.0)
    rate = (linear + np.sqrt(inner)) / (4 * num_items)
    rate = np.maximum(rate, max(0.0, -null))
    variance = num_items * (2 * rate + null * (1 - null))
    excess = wins - losses - num_items * null
    return np.divide(excess, np.sqrt(variance), out=np.zeros(len(excess)), where=variance > 0)


def _unconditional_p(wins: int, losses: int, num_items: int, null: float) -> float:
    """P that Tango's statistic is as large as observed, at the worst likely discordance."""
    observed = float(_tango(np.array([wins]), np.array([losses]), num_items, null)[0])
    discordant, tail = wins + losses, _OUTSIDE / 2
    low, high = 0.0, 1.0  # Clopper and Pearson's interval
    if discordant:
        low = float(betaincinv(discordant, num_items - discordant + 1, tail))
    if discordant < num_items:
        high = float(betaincinv(discordant + 1, num_items - discordant, 1 - tail))
    low = max(low, abs(null), 1e-12)
    if low > high:
        return _OUTSIDE
    shares = np.linspace(low, high, _NUM_NUISANCE)
    reach = 6 * np.sqrt(num_items * shares * (1 - shares)) + 10  # leaves 1e-9 on either side
    first = max(0, int((num_items * shares - reach).min()))
    last = min(num_items, int((num_items * shares + reach).max()))
    totals = np.arange(first, last + 1)
    needed = _needed_wins(totals, num_items, null, observed)
    ways = gammaln(num_items + 1) - gammaln(totals + 1) - gammaln(num_items - totals + 1)
    column = shares[:, None]
    weight = np.exp(ways + xlogy(totals, column) + xlog1py(num_items - totals, -column))
    rate = np.clip((column + null) / (2 * column), 0.0, 1.0)
    possible = (needed >= 1) & (needed <= totals)
    chance = np.broadcast_to((needed < 1).astype(np.float64), weight.shape).copy()
    wanted = needed[possible]
    chance[:, possible] = betainc(wanted, totals[possible] - wanted + 1, rate)
    return min(1.0, float(np.max(np.sum(weight * chance, axis=1))) + _OUTSIDE)


def _needed_wins(
    totals: Int[np.ndarray, "table"], num_items: int, null: float, observed: float
) -> Int[np.ndarray, "table"]:
    """Fewest wins among so many discordant items that are as extreme as `observed`."""
    low, high = np.full_like(totals, -1), totals + 1  # low never suffices, high always does
    while np.any(high - low > 1):
        middle = (low + high) // 2
        extreme = _tango(middle, totals - middle, num_items, null) >= observed - _TINY
        open_ = high - low > 1
        high = np.where(open_ & extreme, middle, high)
        low = np.where(open_ & ~extreme, middle, low)
    return high


def _score(
    sums: Float[np.ndarray, "cluster"],
    sizes: Float[np.ndarray, "cluster"],
    null: float,
    bound: float,
) -> float:
    excess = sums - null * sizes
    total = float(excess.sum())
    if total == 0:
        return 0.0
    if total < 0:
        return -_score(-sums, sizes, -null, bound)
    worst = -(bound + null) * float(sizes.max())  # a cluster that loses everything
    lowest = min(worst, float(excess.min()))
    if lowest >= 0:
        return 0.0
    end = (1 - 1e-12) / -lowest
    multiplier = end
    if np.sum(excess / (1 + end * excess)) < 0:
        multiplier = cast(float, brentq(lambda m: np.sum(excess / (1 + m * excess)), 0.0, end))
    masses = 1 / (len(sums) * (1 + multiplier * excess))
    rest = max(0.0, 1.0 - float(masses.sum()))
    variance = float(np.sum(masses * excess**2)) + rest * worst**2
    return total / float(np.sqrt(len(sums) * variance))
