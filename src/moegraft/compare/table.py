"""Which models the items can tell apart: ranking in groups, paired tests, what n can resolve."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from moegraft.compare.arms import Arms, Pick, Rows, check_arms, resolve_by_error
from moegraft.compare.clusters import design_effect
from moegraft.compare.groups import letters
from moegraft.compare.overall import analyse_overall, shares_of
from moegraft.compare.results import Paired, Pairing
from moegraft.compare.words import comparison_sentence, methods_paragraph, overall_sentence
from moegraft.errors import ResultsError
from moegraft.stats import (
    ItemBootstrap,
    cluster_numbers,
    equivalence,
    equivalence_by_error,
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
    arms: Arms | None = None,
    weights: Mapping[str, float | int] | None = None,
    test_overall: bool = False,
    alpha: float = 0.05,
    power: float = POWER,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Comparison:
    """Compare every pair of models, or every model with one, on the items they share.

    All tests of all conditions are one family for Holm's correction. A difference is established
    when its adjusted p is below `alpha`; models whose difference is not established share a group.
    The overall score (a weighted mean over conditions) stands beside them and is not adjusted,
    unless `test_overall` makes it part of the family. Scores and differences are fractions (0.03 =
    3 points).

    Args:
        pairing: of at least two models.
        reference: compare with this model (this arm) only, which makes the family smaller.
        margin: also test whether models that cannot be told apart match within this fraction.
        arms: training recipes and their seeds, models of `pairing` all of them: recipes are
            compared then, and seeds are a second source of uncertainty beside the items.
        weights: of conditions in the overall score; None for equal ones.
        test_overall: count the tests of the overall score among those that are adjusted.
        alpha: family-wise level.
        power: for the detectable difference and the items needed.
        seed: of bootstrap and sign flips.
        num_resamples: of both.

    Returns:
        JSON-ready: `models`, `arms`, per condition `ranking` and `comparisons`, each with its
        sentence, `overall` in the same form or None, and `methods`, a paragraph that says what was
        done.

    Raises:
        ResultsError: no model is called `reference`, a margin for scores outside [0, 1], arms that
            are no sets of seeds on the same items, or no overall score where one is asked for.
        RecipeError: weights that do not fit the conditions.
    """
    if arms is not None:
        check_arms(arms, pairing)
    names = list(pairing.models if arms is None else arms)
    if reference is not None and reference not in names:
        known = ", ".join(names)
        raise ResultsError(f"--reference {reference!r}: no such model; there are {known}")

    def wanted(a: str, b: str) -> bool:
        return reference is None or reference in (a, b)

    how = {"seed": seed, "num_resamples": num_resamples}
    found = [_analyse(one, wanted, arms, **how) for one in pairing.conditions]
    shares, why = shares_of(pairing.conditions, weights, needed=test_overall)
    overall = None
    if shares is not None:
        overall = analyse_overall(pairing.conditions, shares, wanted, arms=arms, **how)
    family = [*found, overall] if overall is not None and test_overall else found
    num_tests = _adjust(family, alpha)
    for about, one in zip(found, pairing.conditions, strict=True):
        _resolve(about, alpha / num_tests, power)
        if margin is not None:
            _match(about, one, margin, alpha)
    for about in family:
        _group(about)
    for about in found:
        for test in about["comparisons"]:
            test["sentence"] = comparison_sentence(test, about)
    if overall is not None:
        overall["confirmatory"] = test_overall
        _resolve(overall, alpha / num_tests if test_overall else alpha, power)
        for test in overall["comparisons"]:
            test["sentence"] = overall_sentence(test, overall)
    comparison: Comparison = {
        "schema": SCHEMA,
        "models": list(pairing.models),
        "arms": None if arms is None else {arm: list(seeds) for arm, seeds in arms.items()},
        "sources": dict(pairing.sources),
        "settings": {
            "reference": reference,
            "alpha": alpha,
            "power": power,
            "margin": margin,
            "seed": seed,
            "num_resamples": num_resamples,
            "num_tests": num_tests,
        },
        "conditions": found,
        "overall": overall,
        "notes": [*pairing.notes, *([why] if why else [])],
    }
    return comparison | {"methods": methods_paragraph(comparison)}


def _adjust(family: Sequence[_Entry], alpha: float) -> int:
    """Holm's correction over all tests of the family; how many there are."""
    tests = [test for about in family for test in about["comparisons"]]
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["adjusted_p"] = p
        test["established"] = p < alpha
    return len(tests)


def _analyse(
    one: Paired, wanted: Pick, arms: Arms | None, *, seed: int, num_resamples: int
) -> _Entry:
    """Ranking and paired tests of one condition, p not yet adjusted."""
    about: _Entry = {
        "name": one.condition,
        "metric": one.metric,
        "num_items": len(one.items),
        "num_clusters": int(cluster_numbers(one.clusters, len(one.items)).max()) + 1,
        "binary": is_binary(one.scores),
        "prompts": one.prompts,
        "left_out": dict(one.left_out),
    }
    if arms is not None:
        rows = Rows.of(one, arms)
        ranking = rows.ranking()
        names = [entry["model"] for entry in ranking]
        return about | {"ranking": ranking, "comparisons": rows.comparisons(names, wanted)}
    bootstrap = ItemBootstrap.of(
        one.scores, seed=seed, num_resamples=num_resamples, clusters=one.clusters
    )
    means = bootstrap.means
    order = sorted(range(len(one.models)), key=lambda column: (-means[column], one.models[column]))
    alone = about["num_clusters"] == about["num_items"]
    ranking = []
    for column in order:
        interval = (
            wilson_interval(int(one.scores[:, column].sum()), len(one.items))
            if about["binary"] and alone
            else bootstrap.estimate(_unit(len(order), column)).interval
        )
        ranking.append(
            {
                "model": one.models[column],
                "score": float(means[column]),
                "interval": [interval.low, interval.high],
            }
        )
    tests = [
        _test(one, a, b, seed, num_resamples)
        for a, b in combinations(order, 2)
        if wanted(one.models[a], one.models[b])
    ]
    return about | {"ranking": ranking, "comparisons": tests}


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
        if "error" in test:
            resolve_by_error(test, about["num_items"], alpha, power)
            continue
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
        if test["test"] == "seeds":
            sizes = (test["difference"], test["error"], test["degrees"])
            found = equivalence_by_error(*sizes, margin, alpha=alpha)
        else:
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
