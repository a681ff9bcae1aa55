"""The verdict in words: what a run establishes, what it does not, and what it cannot."""

from collections.abc import Mapping
from typing import Any

from moegraft.report.analysis import ALPHA
from moegraft.report.items import components_of, is_composition
from moegraft.report.summary import Summary, find_cell
from moegraft.report.words import against, p_value, points


def verdicts(summary: Summary) -> list[str]:
    """Sentences about each condition, in the order of the conditions.

    A difference counts as established when its Holm-adjusted paired test says so, a match when
    the adjusted equivalence test does, and a composition exceeds both parents only where items
    that it was not chosen on confirm it.
    """
    section = summary["subset"]
    found = [] if summary["run"]["finished"] else ["The run is not finished; all this may change."]
    for about in section["conditions"]:
        condition = about["name"]
        cells = {
            name: cell
            for name in summary["configurations"]
            if (cell := find_cell(section, name, condition)) and cell["finished"]
        }
        winner = next((one for one in section["winners"] if one["condition"] == condition), None)
        sentences = [_parents(cells), *_singles(cells), _shares(section, condition)]
        sentences += [_best(winner) if winner else "", _resolution(about)]
        text = " ".join(sentence for sentence in sentences if sentence)
        if text:
            found.append(f"{condition}: {text}")
    return found


def established(test: Mapping[str, Any] | None) -> bool:
    """Whether a difference is established, see `verdicts`."""
    return test is not None and test["p_holm"] is not None and test["p_holm"] < ALPHA


def matched(test: Mapping[str, Any] | None) -> bool:
    """Whether two configurations are shown to differ by less than the margin of a match."""
    match = test and test["match"]
    return bool(match) and match["p_holm"] is not None and match["p_holm"] < ALPHA


def _parents(cells: Mapping[str, Any]) -> str:
    test = cells.get("donor", {}).get("against", {}).get("host")
    if test is None or test["interval"] is None:
        return ""
    ahead = "donor" if test["difference"] >= 0 else "host"
    if established(test):
        return f"The {ahead} is ahead by {_size(test, absolute=True)}."
    if matched(test):
        return f"Donor and host match: {_equal(test)}."
    return f"No difference between donor and host is established ({_size(test)})."


def _singles(cells: Mapping[str, Any]) -> list[str]:
    raised, lowered, equal, open_ = [], [], [], []
    for name, cell in cells.items():
        test = cell["against"].get("host")
        single = is_composition(name) and len(components_of(name)) == 1
        if not single or test is None or test["p_holm"] is None:
            continue
        if matched(test):
            equal.append(f"{name} ({_equal(test)})")
        elif not established(test):
            open_.append(f"{name} ({points(test['difference'], sign=True)})")
        else:
            gap = cell["gap_recovered"]
            share = f", {100 * gap['value']:.0f} % of the gap" if gap else ""
            text = f"the donor's {name} ({_size(test)}{share})"
            (raised if test["difference"] > 0 else lowered).append(text)
    sentences = []
    if raised:
        sentences.append(f"Alone, {_and(raised)} {_verb('raise', raised)} the host's score.")
    if lowered:
        sentences.append(f"Alone, {_and(lowered)} {_verb('lower', lowered)} it.")
    if equal:
        sentences.append(f"Alone, these leave the host's score as it is: {', '.join(equal)}.")
    if open_:
        sentences.append(f"Alone, no effect is established for {', '.join(open_)}.")
    return sentences


def _shares(section: Mapping[str, Any], condition: str) -> str:
    """Shapley values that are not 0, and where the gold log-probability points elsewhere."""
    values = _shapley(section["effects"], condition)
    carried = {
        name: effect
        for name, effect in values.items()
        if effect["simultaneous"][0] > 0 or effect["simultaneous"][1] < 0
    }
    if not carried:
        return ""
    parts = [
        f"{name} {points(effect['value'], sign=True)} "
        f"[{points(effect['simultaneous'][0])}, {points(effect['simultaneous'][1])}]"
        for name, effect in carried.items()
    ]
    text = f"Shares of the way from host to all components (Shapley, simultaneous): {_and(parts)}."
    gold = _shapley(section["gold_effects"], condition)
    largest, pointer = _largest(values), _largest(gold)
    if pointer and pointer != largest:
        text += (
            f" By gold log-probability the largest share is {pointer}'s; "
            "only the score backs a claim."
        )
    return text


def _best(winner: Mapping[str, Any]) -> str:
    where = f"{winner['num_confirming']} {_others(winner)}"
    test = winner["against"][winner["parent"]]
    lead = (
        f"The best of {winner['num_choices']} compositions, chosen on "
        f"{winner['num_choosing']} items, is {winner['configuration']}; on {where} it scores "
        f"{points(winner['score'])} %, {against(test)} the {winner['parent']}, the better "
        "parent there"
    )
    if winner["exceeds"]:
        text = f"{lead}: it exceeds both parents (Holm-adjusted {p_value(winner['p_holm'])})."
    elif winner["matches"]:
        text = f"{lead}: it matches the {winner['parent']} ({_equal(test)})."
    else:
        text = f"{lead}; that it exceeds both parents is not established."
    return (
        f"{text} On all items {winner['best_on_all']} is highest with "
        f"{points(winner['score_on_all'])} %; picking the highest adds "
        f"{points(winner['optimism'])} points by chance."
    )


def _resolution(about: Mapping[str, Any]) -> str:
    found = about["resolution"]
    if found is None:
        return ""
    passages = ""
    if about["num_clusters"] < about["num_items"]:
        passages = f" (in {about['num_clusters']} groups that share a text)"
    lead = f"What {about['num_items']} items{passages} can resolve:"
    match = (
        f"a match within {_margin(found['match_margin'])} would take about "
        f"{found['items_to_match']:,} items."
    )
    if found["minimum_detectable"] >= 1:
        return f"{lead} no difference from the host, however large; {match}"
    smallest = points(found["minimum_detectable"])
    text = f"{lead} differences from the host of about {smallest} points in one test"
    if found["num_tests"] > 1:
        adjusted = found["minimum_detectable_adjusted"]
        size = f"{points(adjusted)} points" if adjusted < 1 else "none"
        text += f", {size} after correction for {found['num_tests']}"
    return f"{text}, with 80 % power; smaller ones stay open, and {match}"


def _shapley(effects: list[dict[str, Any]], condition: str) -> dict[str, Any]:
    return {
        effect["components"][0]: effect
        for effect in effects
        if effect["condition"] == condition and effect["kind"] == "shapley"
    }


def _largest(values: Mapping[str, Any]) -> str | None:
    return max(values, key=lambda name: abs(values[name]["value"]), default=None)


def _others(winner: Mapping[str, Any]) -> str:
    return "other items" if winner["source"] == "halves" else "held-out items"


def _and(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _verb(verb: str, subjects: list[str]) -> str:
    plural = len(subjects) > 1 or subjects[0].startswith("the donor's experts")
    return verb if plural else f"{verb}s"


def _equal(test: Mapping[str, Any]) -> str:
    match = test["match"]
    low, high = match["interval"]
    return (
        f"within {_margin(match['margin'])}, 90% interval [{points(low)}, {points(high)}], "
        f"Holm-adjusted {p_value(match['p_holm'])}"
    )


def _margin(margin: float) -> str:
    return f"±{100 * margin:g} point{'s' if margin != 0.01 else ''}"


def _size(test: Mapping[str, Any], *, absolute: bool = False) -> str:
    low, high = test["interval"]
    value = test["difference"]
    if absolute and value < 0:
        value, low, high = -value, -high, -low
    number = points(value, sign=not absolute)
    adjusted = f"Holm-adjusted {p_value(test['p_holm'])}"
    return f"{number} points [{points(low)}, {points(high)}], {adjusted}"
