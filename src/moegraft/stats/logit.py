"""Conditional logit by item: McNemar's test for a whole factorial, in log-odds."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp
from scipy.stats import norm

from moegraft.stats.bootstrap import cluster_numbers
from moegraft.stats.inference import is_binary

_MAX_CONFIGURATIONS = 16
_MAX_STEPS = 50
_SEPARATED = 15.0
"""Log-odds beyond which a term is taken to be infinite."""


@dataclass(frozen=True, slots=True)
class ConditionalLogit:
    """Coefficients in log-odds, one per term of the design."""

    coefficients: Float[np.ndarray, "term"]
    errors: Float[np.ndarray, "term"]
    p_values: Float[np.ndarray, "term"]
    """Wald, two-sided."""
    num_informative: int
    """Items that some configurations solve and others do not; the rest say nothing."""


def conditional_logit(
    scores: Float[np.ndarray, "item configuration"],
    design: Float[np.ndarray, "configuration term"],
    *,
    clusters: Sequence[str | None] | None = None,
) -> ConditionalLogit | None:
    """Fit logit P(right) = item + design @ coefficients, items conditioned out.

    Given how many of its configurations an item solves, which ones they are follows a multinomial
    over equally large subsets of them (Chamberlain 1980, Rev. Econ. Stud. 47:225), so items with
    one pattern of answers enter together: milliseconds where a general routine takes seconds. With
    two configurations and one term its score test is McNemar's.

    Args:
        scores: 0/1.
        design: terms of each configuration, without a constant.
        clusters: items that share one get errors that allow for it (sandwich).

    Returns:
        None where the likelihood has no maximum (a term that is perfect on the informative
        items) or no item is informative.
    """
    assert is_binary(scores), "a logit is for 0/1 scores"
    num_configurations = scores.shape[1]
    assert num_configurations <= _MAX_CONFIGURATIONS, "2^configurations patterns are enumerated"
    totals = scores.sum(axis=1).astype(np.int64)
    informative = (totals > 0) & (totals < num_configurations)
    if not informative.any():
        return None
    patterns = np.array(list(product((0.0, 1.0), repeat=num_configurations)))
    sizes = patterns.sum(axis=1).astype(np.int64)
    strata = {int(size): patterns[sizes == size] @ design for size in set(totals[informative])}
    chosen, totals = scores[informative] @ design, totals[informative]
    coefficients = np.zeros(design.shape[1])
    for _ in range(_MAX_STEPS):
        means, information = _moments(strata, totals, coefficients)
        residuals = chosen - means
        try:
            step = np.linalg.solve(information, residuals.sum(axis=0))
        except np.linalg.LinAlgError:
            return None
        coefficients = coefficients + step
        if np.max(np.abs(coefficients)) > _SEPARATED:
            return None
        if np.max(np.abs(step)) < 1e-10:
            break
    else:
        return None
    means, information = _moments(strata, totals, coefficients)
    covariance = np.linalg.inv(information)
    if clusters is not None:
        groups = [name for name, kept in zip(clusters, informative, strict=True) if kept]
        covariance = _sandwich(covariance, chosen - means, groups)
    errors = np.sqrt(np.diag(covariance))
    p_values = 2 * norm.sf(np.abs(coefficients / errors))
    return ConditionalLogit(coefficients, errors, p_values, len(totals))


def _moments(
    strata: dict[int, np.ndarray], totals: np.ndarray, coefficients: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Expected terms of every item, and the information of all of them."""
    means = np.empty((len(totals), len(coefficients)))
    information = np.zeros((len(coefficients), len(coefficients)))
    for size, terms in strata.items():
        logits = terms @ coefficients
        shares = np.exp(logits - logsumexp(logits))
        mean = shares @ terms
        members = totals == size
        means[members] = mean
        spread = terms - mean
        information += np.count_nonzero(members) * (spread.T * shares) @ spread
    return means, information


def _sandwich(
    inverse: np.ndarray, residuals: np.ndarray, clusters: Sequence[str | None]
) -> np.ndarray:
    numbers = cluster_numbers(clusters, len(residuals))
    sums = np.zeros((int(numbers.max()) + 1, residuals.shape[1]))
    np.add.at(sums, numbers, residuals)
    scale = len(sums) / max(1, len(sums) - 1)
    return scale * inverse @ (sums.T @ sums) @ inverse
