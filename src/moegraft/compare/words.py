"""A comparison in words: one sentence per test, and the methods paragraph of a paper."""

from collections.abc import Mapping, Sequence
from typing import Any

import moegraft
from moegraft.report.words import p_value, points

_PROMPTS = {
    "equal": "prompts were verified to be the same",
    "unknown": "the sources do not record the prompts, so equal prompts could not be verified",
    "own": "each model was asked the same questions in its own chat template and tokenizer",
    "different": "prompts differed between models, as asked for",
}


def comparison_sentence(test: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What one test says, in one sentence; `a` is the model with the higher score."""
    low, high = test["interval"]
    size = f"{points(test['difference'])} points [{points(low)}, {points(high)}]"
    adjusted = f"adjusted {p_value(test['adjusted_p'])}"
    if test["established"]:
        return f"{test['a']} is ahead of {test['b']} by {size}, {adjusted}."
    match = test.get("match")
    if match and match["matches"]:
        low, high = match["interval"]
        return (
            f"{test['a']} and {test['b']} match within {points(match['margin'])} points: "
            f"{points(test['difference'])} points, {100 * match['level']:g}% interval "
            f"[{points(low)}, {points(high)}], {p_value(match['p'])}."
        )
    lead = f"No difference between {test['a']} and {test['b']} is established ({size}, {adjusted})"
    return f"{lead}: {resolution(test, about)}."


def overall_sentence(test: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What the overall score says of two models, and that it is not among the adjusted tests."""
    if about["confirmatory"]:
        return f"Overall: {comparison_sentence(test, about)}"
    low, high = test["interval"]
    size = f"{points(test['difference'], sign=True)} points [{points(low)}, {points(high)}]"
    return (
        f"Overall, {test['a']} minus {test['b']} is {size}, {p_value(test['p'])}: not adjusted, "
        "for orientation."
    )


def overall_title(about: Mapping[str, Any]) -> str:
    """Which mean the overall score is."""
    weights = about["weights"]
    if len(set(weights.values())) == 1:
        return f"unweighted mean of {len(weights)} conditions"
    shares = _listed([f"{share:.2f} {name}" for name, share in weights.items()])
    return f"weighted mean, {shares}"


def resolution(test: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What the items can resolve, and what the observed difference would take."""
    items = f"{about['num_items']:,} items"
    if test["difference"] == 0 and 0 in (test.get("discordance"), test.get("error")):
        return f"the two agree on all {items}"
    seeds = test["test"] == "seeds"
    able = (
        f"{items}{' and these seeds' if seeds else ''} detect {points(test['detectable'])} points"
    )
    if test["detectable"] >= 1:
        able = f"{items} are too few to detect anything"
    if test["difference"] == 0:
        return f"{able}, and the observed difference is 0"
    if test["items_needed"] is None:
        return f"{able}; for a true difference of this size it takes more seeds, not more items"
    return f"{able}; a true difference of this size would take {test['items_needed']:,}"


def methods_paragraph(comparison: Mapping[str, Any]) -> str:
    """What was done, ready for a paper; generated from the comparison itself."""
    settings, conditions = comparison["settings"], comparison["conditions"]
    tests = [test for about in conditions for test in about["comparisons"]]
    sentences = [
        _what(comparison),
        _pairing(conditions),
        *_left_out(conditions),
        _intervals(comparison),
        _tests(comparison),
    ]
    if any("match" in test for test in tests):
        how = "t tests" if comparison["arms"] else "score tests of Tango 1998"
        sentences.append(
            f"Pairs without an established difference were tested for equivalence within "
            f"{points(settings['margin'])} points by two one-sided tests (Schuirmann 1987; "
            f"{how}), each at a level of {settings['alpha']:g}, unadjusted."
        )
    sentences.append(_power(comparison, [test["detectable"] for test in tests]))
    if comparison["overall"] is not None:
        sentences.append(_overall(comparison))
    sentences.append(
        f"Computed with moegraft {moegraft.__version__} (seed {settings['seed']}, "
        f"{settings['num_resamples']:,} resamples)."
    )
    return " ".join(sentences)


def _what(comparison: Mapping[str, Any]) -> str:
    reference, arms = comparison["settings"]["reference"], comparison["arms"]
    titles = {name: name for name in comparison["models"]}
    if arms:
        titles = {arm: f"{arm} ({len(seeds)} training seeds)" for arm, seeds in arms.items()}
    where = _listed(
        [
            f"{about['name']} ({about['num_items']:,} items"
            + (f", {about['metric']}" if about["metric"] else "")
            + (
                f", {about['num_clusters']:,} clusters"
                if about["num_clusters"] < about["num_items"]
                else ""
            )
            + ")"
            for about in comparison["conditions"]
        ]
    )
    if reference is None:
        kind = "training recipes" if arms else "models"
        names = _listed(list(titles.values()))
        return f"We compared {len(titles)} {kind} ({names}) pairwise on {where}."
    others = _listed([title for name, title in titles.items() if name != reference])
    return f"We compared {others} with {titles[reference]} on {where}."


def _pairing(conditions: Sequence[Mapping[str, Any]]) -> str:
    kinds = list(dict.fromkeys(about["prompts"] for about in conditions))
    if len(kinds) == 1:
        return f"All models answered the same items, paired by item; {_PROMPTS[kinds[0]]}."
    said = "; ".join(
        f"on {_listed([a['name'] for a in conditions if a['prompts'] == kind])}, {_PROMPTS[kind]}"
        for kind in kinds
    )
    return f"All models answered the same items, paired by item: {said}."


def _left_out(conditions: Sequence[Mapping[str, Any]]) -> list[str]:
    lost = [
        f"{count:,} of {name} on {about['name']}"
        for about in conditions
        for name, count in about["left_out"].items()
    ]
    return [f"Items that not all models answered were left out ({_listed(lost)})."] if lost else []


def _intervals(comparison: Mapping[str, Any]) -> str:
    conditions, settings = comparison["conditions"], comparison["settings"]
    clustered = any(about["num_clusters"] < about["num_items"] for about in conditions)
    unit = "items, those of one cluster together" if clustered else "items"
    if comparison["arms"]:
        unit = "clusters of items" if clustered else "items"
        return (
            f"Training seeds and {unit} were treated as crossed random factors: the variance of a "
            f"difference is that between the seeds of either recipe plus that between {unit}, and "
            "scores and differences carry 95% t intervals with Satterthwaite's degrees of freedom."
        )
    plain = all(a["binary"] and a["num_clusters"] == a["num_items"] for a in conditions)
    own = "Wilson's 95% intervals" if plain else "95% intervals"
    return (
        f"Scores carry {own}; differences carry 95% percentile intervals of a paired bootstrap "
        f"over {unit} ({settings['num_resamples']:,} resamples), one comparison each."
    )


def _tests(comparison: Mapping[str, Any]) -> str:
    conditions, settings = comparison["conditions"], comparison["settings"]
    overall = comparison["overall"]
    counted = overall is not None and overall["confirmatory"]
    kinds = {test["test"] for about in conditions for test in about["comparisons"]}
    words = {
        "mcnemar": "the exact two-sided McNemar test",
        "sign-flip": "a two-sided sign-flip permutation test of the paired differences",
        "seeds": "that two-sided t test, or from sign flips of the seed-averaged differences "
        "where these are more cautious",
    }
    used = _listed([text for kind, text in words.items() if kind in kinds])
    if settings["num_tests"] == 1:
        return f"The p value is from {used}; it is the only test, so nothing was adjusted."
    over = f" over {len(conditions)} conditions" if len(conditions) > 1 else ""
    over += " and the overall score" if counted else ""
    return (
        f"p values are from {used}, adjusted by Holm's method for all {settings['num_tests']} "
        f"comparisons{over} (family-wise level {settings['alpha']:g})."
    )


def _power(comparison: Mapping[str, Any], detectable: Sequence[float]) -> str:
    """Which differences the items detect; none where it would take more than all there are."""
    settings, arms = comparison["settings"], comparison["arms"]
    count, seen = settings["num_tests"], "variance of seeds and items" if arms else "discordance"
    lead = f"At Bonferroni's level for {count} test{'s'[: count != 1]} and the observed {seen}, "
    able = sorted(size for size in detectable if size < 1)
    if not able:
        return f"{lead}the items are too few to detect any difference."
    ends = list(dict.fromkeys([points(able[0]), points(able[-1])]))
    text = (
        f"{lead}differences of {' to '.join(ends)} points are detected with a power of "
        f"{100 * settings['power']:.0f} %{'' if arms else ' (Connor 1987)'}"
    )
    rest = len(detectable) - len(able)
    return f"{text}; in {rest} of the tests the items are too few." if rest else f"{text}."


def _overall(comparison: Mapping[str, Any]) -> str:
    about = comparison["overall"]
    how = (
        "the same t test on the pooled items, their variance taken within conditions"
        if comparison["arms"]
        else "a bootstrap stratified by condition and a sign-flip test in which questions that "
        "conditions share move together"
    )
    status = (
        "it is one of the adjusted tests"
        if about["confirmatory"]
        else "its p values are not adjusted and no claim rests on them"
    )
    return f"The overall score is the {overall_title(about)}, with {how}; {status}."


def _listed(words: Sequence[str]) -> str:
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
