"""The verdict in words: what a run establishes, and what it does not."""

from collections.abc import Mapping
from typing import Any

from moegraft.report.items import components_of, is_composition
from moegraft.report.summary import Summary, find_cell
from moegraft.report.words import p_value, points

ALPHA = 0.05


def verdicts(summary: Summary) -> list[str]:
    """Sentences about each condition, in the order of the conditions.

    A difference counts as established when the Holm-adjusted exact McNemar test says so; where
    tests for proportions are withheld, when the paired interval excludes 0, which is said.
    """
    section = summary["subset"]
    found = [] if summary["run"]["finished"] else ["The run is not finished; all this may change."]
    for about in section["conditions"]:
        cells = {
            name: cell
            for name in summary["configurations"]
            if (cell := find_cell(section, name, about["name"])) and cell["finished"]
        }
        sentences = [_parents(cells), *_singles(cells), _best(cells)]
        text = " ".join(sentence for sentence in sentences if sentence)
        if text:
            found.append(f"{about['name']}: {text}")
    return found


def established(test: Mapping[str, Any] | None) -> bool:
    """Whether a difference is established, see `verdicts`."""
    if test is None or test["interval"] is None:
        return False
    if test["mcnemar_holm"] is not None:
        return test["mcnemar_holm"] < ALPHA
    low, high = test["interval"]
    return low > 0 or high < 0


def _parents(cells: Mapping[str, Any]) -> str:
    test = cells.get("donor", {}).get("against", {}).get("host")
    if test is None or test["interval"] is None:
        return ""
    ahead = "donor" if test["difference"] >= 0 else "host"
    if established(test):
        return f"The {ahead} is ahead by {_size(test, absolute=True)}."
    return f"No difference between donor and host is established ({_size(test)})."


def _singles(cells: Mapping[str, Any]) -> list[str]:
    raised, lowered, open_ = [], [], []
    for name, cell in cells.items():
        test = cell["against"].get("host")
        if not is_composition(name) or len(components_of(name)) != 1 or test is None:
            continue
        if not established(test):
            open_.append(f"{name} ({points(test['difference'], sign=True)})")
            continue
        gap = cell["gap_recovered"]
        share = f", {100 * gap['value']:.0f} % of the gap" if gap else ""
        text = f"the donor's {name} ({_size(test)}{share})"
        (raised if test["difference"] > 0 else lowered).append(text)
    sentences = []
    if raised:
        sentences.append(f"Alone, {' and '.join(raised)} raise the host's score.")
    if lowered:
        sentences.append(f"Alone, {' and '.join(lowered)} lower it.")
    if open_:
        sentences.append(f"Alone, no effect is established for {', '.join(open_)}.")
    return sentences


def _best(cells: Mapping[str, Any]) -> str:
    transfers = {name: cell for name, cell in cells.items() if name not in ("host", "donor")}
    if not transfers or not {"host", "donor"} <= set(cells):
        return ""
    best = max(transfers, key=lambda name: transfers[name]["score"])
    parent = max(("host", "donor"), key=lambda name: cells[name]["score"])
    test = transfers[best]["against"].get(parent)
    lead = f"The best composition is {best} with {points(transfers[best]['score'])} %"
    if test is None or test["interval"] is None:
        return lead + "."
    size = f"against the {parent}, the better parent: {_size(test)}"
    warning = (
        f"it was picked among {len(transfers)} on the same items, so its score flatters it; "
        "confirm it on other items"
    )
    if established(test) and test["difference"] > 0:
        return f"{lead} ({size}): it exceeds both parents on these items, but {warning}."
    return f"{lead} ({size}); that it exceeds both parents is not established."


def _size(test: Mapping[str, Any], *, absolute: bool = False) -> str:
    low, high = test["interval"]
    value = test["difference"]
    if absolute and value < 0:
        value, low, high = -value, -high, -low
    p = test["mcnemar_holm"]
    adjusted = f", Holm-adjusted {p_value(p)}" if p is not None else ", 95% paired interval"
    number = points(value, sign=not absolute)
    return f"{number} points [{points(low)}, {points(high)}]{adjusted}"
