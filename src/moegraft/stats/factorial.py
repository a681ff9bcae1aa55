"""Effects of components over a full factorial: main effects, interactions, exact Shapley values.

All of them are linear in the configurations' means, so each is one contrast of every item's
scores, and one item bootstrap gives every interval. With k components there are 2^k configurations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial

import numpy as np
from jaxtyping import Float

from moegraft.stats.bootstrap import ItemBootstrap
from moegraft.stats.inference import Estimate

Subset = frozenset[str]
Name = tuple[str, tuple[str, ...]]
"""Kind and components of an effect."""


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect of the factorial with its paired interval."""

    components: tuple[str, ...]
    kind: str
    """`main`, `interaction` or `shapley`."""
    estimate: Estimate


def subsets(components: Sequence[str]) -> list[Subset]:
    """All 2^k subsets of `components`, small ones first: the configurations of the factorial."""
    sizes = range(len(components) + 1)
    return [frozenset(chosen) for size in sizes for chosen in combinations(components, size)]


def effect_weights(
    components: Sequence[str], configurations: Sequence[Subset]
) -> Mapping[Name, Float[np.ndarray, "configuration"]]:
    """Weight vectors of every effect, over `configurations` in their order.

    `main` of A: mean over the backgrounds of v(S + A) - v(S) (Yates 1937; 1/2^(k-1) each).
    `interaction` of a set E: the |E|-fold difference, averaged over the other components, so that
    for two components it reads "how much more A gives when B is there too" (twice the half-effect
    of some textbooks).
    `shapley` of A: sum of |S|! (k-|S|-1)! / k! (v(S + A) - v(S)) (Shapley 1953); the Shapley values
    add up to v(all) - v(none).
    """
    assert set(configurations) == set(subsets(components)), "not a full factorial"
    weights = {}
    for effect in (names for names in subsets(components) if names):
        names = tuple(name for name in components if name in effect)
        kind = "main" if len(names) == 1 else "interaction"
        signs = [(-1.0) ** len(effect - subset) for subset in configurations]
        weights[kind, names] = np.array(signs) / 2 ** (len(components) - len(effect))
    for name in components:
        weights["shapley", (name,)] = np.array(
            [_shapley_weight(name, subset, len(components)) for subset in configurations]
        )
    return weights


def effect_contrasts(
    components: Sequence[str], columns: Mapping[Subset, int], num_columns: int
) -> dict[Name, Float[np.ndarray, "column"]]:
    """The weights of every effect over the columns of a score matrix.

    `scores @ weights` are an effect's per-item contrasts, and their mean is the effect.

    Args:
        components: the factors, in the order of print.
        columns: which column holds each subset's configuration.
        num_columns: of the matrix; other columns get weight 0.
    """
    configurations = subsets(components)
    places = [columns[subset] for subset in configurations]
    contrasts = {}
    for name, weights in effect_weights(components, configurations).items():
        contrasts[name] = np.zeros(num_columns)
        contrasts[name][places] = weights
    return contrasts


def factorial_effects(
    bootstrap: ItemBootstrap, components: Sequence[str], columns: Mapping[Subset, int]
) -> list[Effect]:
    """Every effect with its interval, from one bootstrap shared by all configurations.

    Args:
        bootstrap: the resampled items of one condition.
        components: the factors, in the order of print.
        columns: which column of the bootstrap holds each subset's configuration.
    """
    contrasts = effect_contrasts(components, columns, len(bootstrap.means))
    return [
        Effect(names, kind, bootstrap.estimate(weights))
        for (kind, names), weights in contrasts.items()
    ]


def _shapley_weight(name: str, subset: Subset, k: int) -> float:
    others = len(subset - {name})
    share = factorial(others) * factorial(k - others - 1) / factorial(k)
    return share if name in subset else -share
