"""The task-adaptive table: per condition the best composition, what confirms it, and which parts.

Table 3 of Tiwari (GEM 2026) is a heuristic by hand. Here each row is chosen on some items and
judged on others (`winners.py`), and a component is advised only where its main effect over the
factorial is established.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from moegraft.report.items import components_of, is_composition
from moegraft.report.words import against, p_value, points
from moegraft.stats import holm

Entry = dict[str, Any]

EITHER = "either"


def task_table(section: Mapping[str, Any]) -> list[Entry]:
    """One entry per condition that has both parents and at least one composition.

    Args:
        section: `subset` of a summary.

    Returns:
        The entries of `winners` with, in addition: p of the difference from host and donor
        adjusted over the conditions (Holm), and under `components` what each one's main effect
        says: `donor`, `host`, or `either` where the simultaneous interval holds 0.
    """
    entries: list[Entry] = [{**winner} for winner in section["winners"]]
    for reference in ("host", "donor"):
        tests = [dict(entry["against"][reference]) for entry in entries]
        for entry, test, p in zip(entries, tests, holm([test["p"] for test in tests]), strict=True):
            test["p_holm"] = p
            entry["against"] = {**entry["against"], reference: test}
    for entry in entries:
        entry["components"] = _advice(section["effects"], entry["condition"])
        entry["verdict"] = verdict_of(entry)
        entry["recommended"] = recommended(entry)
    return entries


def verdict_of(entry: Mapping[str, Any]) -> str:
    """`exceeds both parents`, `matches the ...`, `below the ...`, or `not established`."""
    if entry["exceeds"]:
        return "exceeds both parents"
    if entry.get("matches"):
        return f"matches the {entry['parent']}"
    test = entry["against"][entry["parent"]]
    if _p(test) < 0.05 and test["difference"] < 0:
        return f"below the {entry['parent']}"
    return "not established"


def recommended(entry: Mapping[str, Any]) -> str:
    """What to ship: the composition where it exceeds both parents or matches, else the parent.

    The parent is the better one on the confirming items.
    """
    kept = verdict_of(entry).startswith(("exceeds", "matches"))
    return str(entry["configuration"] if kept else entry["parent"])


def sentence(entry: Mapping[str, Any]) -> str:
    """What confirms a choice, and what does not."""
    parts = [
        f"{against(test)} the {name} ({p_value(_p(test))})"
        for name, test in entry["against"].items()
    ]
    lead = (
        f"{entry['condition']}: {entry['configuration']}, the best of {entry['num_choices']} on "
        f"{entry['num_choosing']} items, scores {points(entry['score'])} % on "
        f"{entry['num_confirming']} others: {' and '.join(parts)}"
    )
    verdict = verdict_of(entry)
    if verdict.startswith("exceeds"):
        return f"{lead}; it {verdict}: ship it."
    if verdict.startswith("matches"):
        return f"{lead}; it {verdict}: either will do."
    if verdict.startswith("below"):
        return f"{lead}; it is {verdict}: ship the {entry['parent']}."
    return (
        f"{lead}; that it exceeds both parents is not established: ship the {entry['parent']}, "
        "the better parent on these."
    )


def advice(entry: Mapping[str, Any]) -> dict[str, str]:
    """Words by component, such as `donor +12.0 [8.1, 15.9]`."""
    return {
        name: f"{one['source']} {points(one['effect'], sign=True)} "
        f"[{points(one['simultaneous'][0])}, {points(one['simultaneous'][1])}]"
        for name, one in entry["components"].items()
    }


def compositions(names: Sequence[str]) -> list[str]:
    """Those that a sweep can choose from: everything but the parents."""
    return [name for name in names if name not in ("host", "donor")]


def moved(configuration: str) -> str:
    """`attention and experts from the donor, all else from the host`."""
    if not is_composition(configuration):
        return f"configuration {configuration!r} of the run"
    return f"{' and '.join(components_of(configuration))} from the donor, all else from the host"


def _p(test: Mapping[str, Any]) -> float:
    """Holm-adjusted where several conditions are asked, plain for one choice."""
    return float(test["p"] if test["p_holm"] is None else test["p_holm"])


def _advice(effects: Sequence[Mapping[str, Any]], condition: str) -> dict[str, Entry]:
    found = {}
    for effect in effects:
        if effect["condition"] != condition or effect["kind"] != "main":
            continue
        low, high = effect["simultaneous"]
        source = "donor" if low > 0 else "host" if high < 0 else EITHER
        found[effect["components"][0]] = {
            "source": source,
            "effect": effect["value"],
            "simultaneous": [low, high],
            "p": effect["p_max_t"],
        }
    return found
