"""Which models the items can tell apart: ranking in groups, paired tests, what n can resolve."""

from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from moegraft.compare.clusters import design_effect
from moegraft.compare.groups import letters
from moegraft.compare.results import Paired, Pairing
from moegraft.compare.words import comparison_sentence, methods_paragraph
from moegraft.errors import ResultsError
from moegraft.stats import (
    ItemBootstrap,
    equivalence,
    holm,
    items_needed,
    minimum_detectable,
    paired_test,
    wilson_interval,
)
from moegraft.stats.inference import NUM_RESAMPLES, is_binary
from moegraft.stats.power import POWER

SCHEMA = 1

Comparison = dict[str, Any]
_Entry = dict[str, Any]


def compare(
    pairing: Pairing,
    *,
    reference: str | None = None,
    margin: float | None = None,
    alpha: float = 0.05,
    power: float = POWER,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Comparison:
    """Compare every pair of models, or every model with one, on the items they share.

    All tests of all conditions are one family for Holm's correction. A difference is established
    when its adjusted p is below `alpha`; models whose difference is not established share a group.
    Scores and differences are fractions (0.03 = 3 points).

    Args:
        pairing: of at least two models.
        reference: compare with this model only, which makes the family smaller.
        margin: also test whether models that cannot be told apart match within this fraction.
        alpha: family-wise level.
        power: for the detectable difference and the items needed.
        seed: of bootstrap and sign flips.
        num_resamples: of both.

    Returns:
        JSON-ready: `models`, per condition `ranking` and `comparisons`, each with its sentence,
        and `methods`, a paragraph that says what was done.

    Raises:
        ResultsError: no model is called `reference`, or a margin for scores outside [0, 1].
    """
    if reference is not None and reference not in pairing.models:
        known = ", ".join(pairing.models)
        raise ResultsError(f"--reference {reference!r}: no such model; there are {known}")
    found = [_analyse(one, reference, seed, num_resamples) for one in pairing.conditions]
    tests = [test for about in found for test in about["comparisons"]]
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["adjusted_p"] = p
        test["established"] = p < alpha
    for about, one in zip(found, pairing.conditions, strict=True):
        _resolve(about, alpha / len(tests), power)
        if margin is not None:
            _match(about, one, margin, alpha)
        _group(about)
        for test in about["comparisons"]:
            test["sentence"] = comparison_sentence(test, about)
    comparison: Comparison = {
        "schema": SCHEMA,
        "models": list(pairing.models),
        "sources": dict(pairing.sources),
        "settings": {
            "reference": reference,
            "alpha": alpha,
            "power": power,
            "margin": margin,
            "seed": seed,
            "num_resamples": num_resamples,
            "num_tests": len(tests),
        },
        "conditions": found,
        "notes": list(pairing.notes),
    }
    return comparison | {"methods": methods_paragraph(comparison)}


def _analyse(one: Paired, reference: str | None, seed: int, num_resamples: int) -> _Entry:
    """Ranking and paired tests of one condition, p not yet adjusted."""
    bootstrap = ItemBootstrap.of(
        one.scores, seed=seed, num_resamples=num_resamples, clusters=one.clusters
    )
    means = bootstrap.means
    order = sorted(range(len(one.models)), key=lambda column: (-means[column], one.models[column]))
    binary = is_binary(one.scores)
    alone = bootstrap.num_clusters == len(one.items)
    ranking = []
    for column in order:
        interval = (
            wilson_interval(int(one.scores[:, column].sum()), len(one.items))
            if binary and alone
            else bootstrap.estimate(_unit(len(order), column)).interval
        )
        ranking.append(
            {
                "model": one.models[column],
                "score": float(means[column]),
                "interval": [interval.low, interval.high],
            }
        )
    return {
        "name": one.condition,
        "metric": one.metric,
        "num_items": len(one.items),
        "num_clusters": bootstrap.num_clusters,
        "binary": binary,
        "prompts": one.prompts,
        "left_out": dict(one.left_out),
        "ranking": ranking,
        "comparisons": [
            _test(one, a, b, seed, num_resamples)
            for a, b in combinations(order, 2)
            if reference is None or reference in (one.models[a], one.models[b])
        ],
    }


def _test(one: Paired, a: int, b: int, seed: int, num_resamples: int) -> _Entry:
    first, second = one.scores[:, a], one.scores[:, b]
    test = paired_test(first, second, clusters=one.clusters, seed=seed, num_resamples=num_resamples)
    wins, losses = test.discordant or (None, None)
    return {
        "a": one.models[a],
        "b": one.models[b],
        "difference": test.estimate.value,
        "interval": [test.estimate.interval.low, test.estimate.interval.high],
        "test": test.kind,
        "p": test.p_value,
        "wins": wins,
        "losses": losses,
        "discordance": float(np.mean((first - second) ** 2)),
        "design_effect": design_effect(first - second, one.clusters),
    }


def _resolve(about: _Entry, alpha: float, power: float) -> None:
    """What n can detect at the level that each test has within the family."""
    for test in about["comparisons"]:
        discordance = min(1.0, test["discordance"])
        how = {"alpha": alpha, "power": power, "design_effect": test["design_effect"]}
        test["detectable"] = minimum_detectable(about["num_items"], discordance, **how)
        difference = min(1.0, abs(test["difference"]))
        test["items_needed"] = items_needed(difference, discordance, **how) if difference else None


def _match(about: _Entry, one: Paired, margin: float, alpha: float) -> None:
    if one.scores.min() < 0 or one.scores.max() > 1:
        raise ResultsError(f"{one.condition}: a margin in points needs scores between 0 and 1")
    columns = {name: place for place, name in enumerate(one.models)}
    open_tests = [test for test in about["comparisons"] if not test["established"]]
    for test in open_tests:
        a, b = (one.scores[:, columns[test[side]]] for side in ("a", "b"))
        found = equivalence(a, b, margin, clusters=one.clusters, alpha=alpha)
        interval = found.estimate.interval
        test["match"] = {
            "margin": margin,
            "level": 1 - 2 * alpha,
            "p": found.p_value,
            "matches": found.matches,
            "interval": [interval.low, interval.high],
        }


def _group(about: _Entry) -> None:
    """Letters for the ranking; with a reference, better, equal or worse than it."""
    names = [entry["model"] for entry in about["ranking"]]
    apart = {(t["a"], t["b"]) for t in about["comparisons"] if t["established"]}
    compared = {(t["a"], t["b"]) for t in about["comparisons"]}
    if len(compared) == len(names) * (len(names) - 1) // 2:
        found = letters(names, apart)
        for entry in about["ranking"]:
            entry["group"] = found[entry["model"]]
        return
    for entry in about["ranking"]:
        name = entry["model"]
        tests = [pair for pair in compared if name in pair]
        established = [pair for pair in tests if pair in apart]
        if len(tests) > 1:
            entry["group"] = "reference"
        elif not established:
            entry["group"] = "not told apart"
        else:
            entry["group"] = "better" if established[0][0] == name else "worse"


def _unit(num_columns: int, column: int) -> Float[np.ndarray, "column"]:
    weights = np.zeros(num_columns)
    weights[column] = 1.0
    return weights
