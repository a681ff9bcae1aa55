"""What a number of items can resolve: detectable differences, margins, and the items they take.

The discordance is the share of items that exactly one of two models solves: about .1 for close
siblings, .4 for unrelated models of one strength. All formulas are the normal approximations that
protocols are planned with; the tests themselves are exact.
"""

from math import ceil, inf, sqrt
from typing import cast

from scipy.optimize import brentq
from scipy.stats import norm, t

POWER = 0.8
"""Chance to detect what is there: the usual 80 %."""


def minimum_detectable(
    num_items: int,
    discordance: float,
    *,
    alpha: float = 0.05,
    power: float = POWER,
    design_effect: float = 1.0,
) -> float:
    """Smallest difference of two accuracies that the two-sided paired test finds with `power`.

    Solves n d^2 = (z_(alpha/2) sqrt(psi) + z_power sqrt(psi - d^2))^2 for d (Connor 1987,
    Biometrics 43:207). A difference cannot exceed the discordance: where the solution does, the
    items are too few for differences of models that agree so often. At most 1.

    Args:
        num_items: items that both models answered.
        discordance: share of items that exactly one of them solves.
        alpha: two-sided level of the test; divide by the number of tests for Bonferroni's.
        power: chance to find the difference.
        design_effect: variance of clustered items over that of as many independent ones.
    """
    _check(discordance, alpha, power)
    items = num_items / design_effect
    if items <= 0 or _items(1.0, discordance, alpha, power) > items:
        return 1.0
    solved = brentq(lambda d: _items(d, discordance, alpha, power) - items, 1e-9, 1.0)
    return cast(float, solved)


def items_needed(
    difference: float,
    discordance: float,
    *,
    alpha: float = 0.05,
    power: float = POWER,
    design_effect: float = 1.0,
) -> int:
    """Items on which the two-sided paired test finds `difference` with `power`.

    A difference cannot exceed the discordance, so the larger of the two is taken for the latter.
    """
    _check(discordance, alpha, power)
    assert difference != 0, "no number of items shows a difference of 0"
    return ceil(design_effect * _items(abs(difference), discordance, alpha, power) - 1e-9)


def resolvable_margin(
    num_items: int,
    discordance: float,
    *,
    alpha: float = 0.05,
    power: float = POWER,
    design_effect: float = 1.0,
) -> float:
    """Smallest margin at which equally good models pass a non-inferiority test with `power`.

    (z_alpha + z_power) sqrt(psi / n), one-sided (Lachin 1992, Stat. Med. 11:1239).
    """
    _check(discordance, alpha, power)
    scale = float(norm.isf(alpha) + norm.ppf(power))
    return min(1.0, scale * sqrt(discordance * design_effect / num_items)) if num_items else 1.0


def items_for_margin(
    margin: float,
    discordance: float,
    *,
    difference: float = 0.0,
    alpha: float = 0.05,
    power: float = POWER,
    design_effect: float = 1.0,
) -> int | None:
    """Items on which non-inferiority within `margin` is shown with `power`.

    None where `difference` (new minus old) is as bad as the margin: no number of items will do.
    """
    _check(discordance, alpha, power)
    room = margin + difference
    if room <= 0:
        return None
    scale = float(norm.isf(alpha) + norm.ppf(power))
    spread = max(discordance - difference**2, 0.0)
    return max(1, ceil(design_effect * spread * (scale / room) ** 2 - 1e-9))


def detectable_by_error(
    error: float, *, degrees: float = inf, alpha: float = 0.05, power: float = POWER
) -> float:
    """Smallest difference that a two-sided t test with this standard error finds with `power`.

    (t_(alpha/2) + t_power) se; normal quantiles without `degrees`.
    """
    return float(t.isf(alpha / 2, degrees) + t.ppf(power, degrees)) * error


def _items(difference: float, discordance: float, alpha: float, power: float) -> float:
    psi = max(discordance, difference)
    test, chance = float(norm.isf(alpha / 2)), float(norm.ppf(power))
    return ((test * sqrt(psi) + chance * sqrt(psi - difference**2)) / difference) ** 2


def _check(discordance: float, alpha: float, power: float) -> None:
    assert 0 <= discordance <= 1, "the discordance is a share of the items"
    assert 0 < alpha < 1, "alpha is a probability"
    assert 0 < power < 1, "the power is a probability"
