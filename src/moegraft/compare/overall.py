"""One score over all conditions: the weighted mean of their means, beside the tests of each."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from moegraft.compare.arms import Arms, Pick, Rows
from moegraft.compare.results import Paired
from moegraft.compare.weights import resolve_weights
from moegraft.errors import ResultsError
from moegraft.stats import pooled_bootstrap, pooled_p

NAME = "overall"

_Entry = dict[str, Any]


def shares_of(
    conditions: Sequence[Paired], weights: Mapping[str, float | int] | None, *, needed: bool
) -> tuple[dict[str, float] | None, str | None]:
    """What each condition counts, or why there is no overall score.

    Scores have to mean the same: a share of what can be reached, between 0 and 1. Without weights
    all conditions count alike, and one condition alone has no overall score.

    Args:
        conditions: of the comparison.
        weights: by name or a part of it; conditions without one do not count.
        needed: the overall score was asked for.

    Raises:
        RecipeError: weights that do not fit the conditions.
        ResultsError: there is no overall score, though it was asked for.
    """
    names = [one.condition for one in conditions]
    if weights:
        shares = resolve_weights(weights, names)
    elif len(names) > 1:
        shares = {name: 1 / len(names) for name in names}
    elif needed:
        raise ResultsError(f"no overall score: {names[0]} is the only condition")
    else:
        return None, None
    for one in conditions:
        if one.condition in shares and not 0 <= one.scores.min() <= one.scores.max() <= 1:
            why = f"no overall score: those of {one.condition} are not between 0 and 1"
            if weights or needed:
                raise ResultsError(f"{why}; leave it out with --weights")
            return None, why
    return shares, None


def analyse_overall(
    conditions: Sequence[Paired],
    shares: Mapping[str, float],
    wanted: Pick,
    *,
    arms: Arms | None,
    seed: int,
    num_resamples: int,
) -> _Entry:
    """Ranking and tests of the overall score, in the form of a condition's; p not adjusted."""
    counted = [one for one in conditions if one.condition in shares]
    weights = [shares[one.condition] for one in counted]
    groups = [_groups(one) for one in counted]
    about: _Entry = {
        "name": NAME,
        "weights": {one.condition: shares[one.condition] for one in counted},
        "num_items": sum(len(one.items) for one in counted),
        "num_clusters": len({name for own in groups for name in own}),
    }
    if arms is not None:
        rows = _pool(counted, weights, groups, arms)
        ranking = rows.ranking()
        names = [entry["model"] for entry in ranking]
        return about | {"ranking": ranking, "comparisons": rows.comparisons(names, wanted)}
    models, scores = counted[0].models, [one.scores for one in counted]
    how: dict[str, Any] = {"seed": seed, "num_resamples": num_resamples}
    found = pooled_bootstrap(scores, groups, weights, **how)
    ranking, tests = [], []
    order = sorted(range(len(models)), key=lambda place: (-found.means[place], models[place]))
    for place in order:
        estimate = found.estimate(np.eye(len(models))[place])
        ends = [estimate.interval.low, estimate.interval.high]
        ranking.append({"model": models[place], "score": estimate.value, "interval": ends})
    for a, b in combinations(order, 2):
        if not wanted(models[a], models[b]):
            continue
        estimate = found.difference(a, b)
        parts = [one[:, a] - one[:, b] for one in scores]
        tests.append(
            {
                "a": models[a],
                "b": models[b],
                "difference": estimate.value,
                "interval": [estimate.interval.low, estimate.interval.high],
                "test": "sign-flip",
                "p": pooled_p(parts, groups, weights, **how),
                "error": float(np.std(found.draws[:, a] - found.draws[:, b])),
            }
        )
    return about | {"ranking": ranking, "comparisons": tests}


def _groups(one: Paired) -> list[str]:
    clusters = one.clusters or (None,) * len(one.items)
    return [cluster or item for cluster, item in zip(clusters, one.items, strict=True)]


def _pool(
    conditions: Sequence[Paired],
    weights: Sequence[float],
    groups: Sequence[Sequence[str]],
    arms: Arms,
) -> Rows:
    """The items of all conditions side by side, each with its share of the overall mean."""
    parts = [Rows.of(one, arms).scores for one in conditions]
    sizes = [len(one.items) for one in conditions]
    return Rows(
        scores={arm: np.concatenate([part[arm] for part in parts], axis=1) for arm in arms},
        seeds=arms,
        clusters=[name for own in groups for name in own],
        weights=np.repeat(np.array(weights) / np.array(sizes), sizes),
        strata=[one.condition for one in conditions for _ in one.items],
    )
