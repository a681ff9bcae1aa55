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


def resolution(test: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What the items can resolve, and what the observed difference would take."""
    items = f"{about['num_items']:,} items"
    if test["discordance"] == 0:
        return f"the two agree on all {items}"
    able = f"{items} detect {points(test['detectable'])} points"
    if test["detectable"] >= 1:
        able = f"{items} are too few to detect anything"
    if test["items_needed"] is None:
        return f"{able}, and the observed difference is 0"
    return f"{able}; a true difference of this size would take {test['items_needed']:,}"


def methods_paragraph(comparison: Mapping[str, Any]) -> str:
    """What was done, ready for a paper; generated from the comparison itself."""
    settings, conditions = comparison["settings"], comparison["conditions"]
    tests = [test for about in conditions for test in about["comparisons"]]
    sentences = [
        _what(comparison),
        _pairing(conditions),
        *_left_out(conditions),
        _intervals(conditions, settings),
        _tests(conditions, tests, settings),
    ]
    if any("match" in test for test in tests):
        sentences.append(
            f"Pairs without an established difference were tested for equivalence within "
            f"{points(settings['margin'])} points by two one-sided tests (Schuirmann 1987; "
            f"score tests of Tango 1998), each at a level of {settings['alpha']:g}, unadjusted."
        )
    detectable = sorted(test["detectable"] for test in tests)
    spread = (
        f"{points(detectable[0])} points"
        if points(detectable[0]) == points(detectable[-1])
        else f"{points(detectable[0])} to {points(detectable[-1])} points"
    )
    sentences.append(
        f"At Bonferroni's level for {len(tests)} tests and the observed discordance, differences "
        f"of {spread} are detected with a power of {100 * settings['power']:.0f} % (Connor 1987)."
    )
    sentences.append(
        f"Computed with moegraft {moegraft.__version__} (seed {settings['seed']}, "
        f"{settings['num_resamples']:,} resamples)."
    )
    return " ".join(sentences)


def _what(comparison: Mapping[str, Any]) -> str:
    models, reference = comparison["models"], comparison["settings"]["reference"]
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
        return f"We compared {len(models)} models ({_listed(models)}) pairwise on {where}."
    others = [name for name in models if name != reference]
    return f"We compared {_listed(others)} with {reference} on {where}."


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


def _intervals(conditions: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    clustered = any(about["num_clusters"] < about["num_items"] for about in conditions)
    unit = "items, those of one cluster together" if clustered else "items"
    plain = all(a["binary"] and a["num_clusters"] == a["num_items"] for a in conditions)
    own = "Wilson's 95% intervals" if plain else "95% intervals"
    return (
        f"Scores carry {own}; differences carry 95% percentile intervals of a paired bootstrap "
        f"over {unit} ({settings['num_resamples']:,} resamples), one comparison each."
    )


def _tests(
    conditions: Sequence[Mapping[str, Any]],
    tests: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> str:
    kinds = {test["test"] for test in tests}
    words = {
        "mcnemar": "the exact two-sided McNemar test",
        "sign-flip": "a two-sided sign-flip permutation test of the paired differences",
    }
    used = _listed([text for kind, text in words.items() if kind in kinds])
    if len(tests) == 1:
        return f"The p value is from {used}; it is the only test, so nothing was adjusted."
    over = f" over {len(conditions)} conditions" if len(conditions) > 1 else ""
    return (
        f"p values are from {used}, adjusted by Holm's method for all {len(tests)} comparisons"
        f"{over} (family-wise level {settings['alpha']:g})."
    )


def _listed(words: Sequence[str]) -> str:
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
