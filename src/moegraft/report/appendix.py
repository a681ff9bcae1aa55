"""Further analyses as tables: simultaneous intervals, false discovery rate, log-odds, optimism."""

from collections.abc import Mapping
from typing import Any

from moegraft.report.analysis import REFERENCES
from moegraft.report.summary import Summary, find_cell
from moegraft.report.tables import Entry, Table, interval_text
from moegraft.report.words import column_title, p_value, points


def build_appendix(summary: Summary) -> list[Table]:
    """The tables of the appendix that have rows."""
    section = summary["subset"]
    tables = [simultaneous_table(summary, reference) for reference in REFERENCES]
    tables += [gold_table(section), logit_table(section)]
    tables += [winner_table(section), resolution_table(section)]
    return [table for table in tables if table.rows]


def simultaneous_table(summary: Summary, reference: str) -> Table:
    """Differences with intervals that hold all at once, and the false discovery rate."""
    section = summary["subset"]
    names = [about["name"] for about in section["conditions"]]
    rows = []
    for configuration in summary["configurations"]:
        cells = [find_cell(section, configuration, name) for name in names]
        tests = [cell["against"].get(reference) if cell else None for cell in cells]
        entries = tuple(_simultaneous(test) for test in tests)
        if any(entry.detail for entry in entries):
            rows.append((configuration, entries))
    note = (
        "Intervals cover all differences of the table at once (max-T from the shared item "
        "bootstrap). q: Benjamini-Hochberg adjusted p, for exploration."
    )
    title = f"Difference from the {reference} in points [95% simultaneous interval]"
    return Table(f"simultaneous_{reference}", title, _columns(section), tuple(rows), (note,))


def gold_table(section: Mapping[str, Any]) -> Table:
    """Effects on the gold answer's log-probability."""
    found: dict[str, dict[str, Entry]] = {}
    for effect in section["gold_effects"]:
        low, high = effect["simultaneous"]
        entry = Entry(f"{effect['value']:+.2f}", f" [{low:.2f}, {high:.2f}]")
        name = f"{effect['kind']}: {' x '.join(effect['components'])}"
        found.setdefault(name, {})[effect["condition"]] = entry
    note = (
        "In nats, simultaneous over all effects of all conditions. It resolves more than the "
        "score with the same items, and says where to look; only the score backs a claim."
    )
    title = "Effects on gold log-probability [95% simultaneous interval]"
    return Table("gold_effects", title, _columns(section), _by(section, found), (note,), "effect")


def logit_table(section: Mapping[str, Any]) -> Table:
    """Conditional logit by item."""
    found: dict[str, dict[str, Entry]] = {}
    for fit in section["appendix"].get("conditional_logit", []):
        for term in fit["terms"] or []:
            detail = f" ±{1.96 * term['error']:.2f}, {p_value(term['p'])}"
            name = " x ".join(term["components"])
            found.setdefault(name, {})[fit["condition"]] = Entry(f"{term['log_odds']:+.2f}", detail)
    note = (
        "Log-odds ratios, ± 1.96 standard errors, Wald p, not adjusted. Items are conditioned out; "
        "a dash: no fit, because a term is perfect on the items that tell configurations apart."
    )
    title = "Conditional logit by item over the factorial"
    return Table("logit", title, _columns(section), _by(section, found), (note,), "term")


def winner_table(section: Mapping[str, Any]) -> Table:
    """The highest composition of each condition, and what choosing it adds."""
    rows = tuple(
        (
            winner["condition"],
            (
                Entry(winner["best_on_all"]),
                Entry(points(winner["score_on_all"])),
                Entry(points(winner["optimism"])),
                Entry(
                    points(winner["corrected"]["value"]),
                    interval_text(winner["corrected"]["interval"]),
                ),
            ),
        )
        for winner in section["winners"]
    )
    columns = (("highest", "composition"), ("score", "%"), ("optimism", "points"))
    note = "Nested bootstrap: what picking the highest adds on average, and the score without it."
    title = "The highest composition, corrected for having been picked"
    columns = (*columns, ("corrected", "95% interval"))
    return Table("winners", title, columns, rows, (note,), "condition")


def resolution_table(section: Mapping[str, Any]) -> Table:
    """What the items of each condition can resolve."""
    rows = tuple(
        (
            about["name"],
            (
                Entry(f"{about['num_items']}", f" in {about['num_clusters']}"),
                Entry(f"{100 * found['discordance']:.0f} %"),
                Entry(points(found["minimum_detectable"])),
                Entry(points(found["minimum_detectable_adjusted"])),
                Entry(points(found["margin"])),
                Entry(f"{found['items_to_match']:,}"),
            ),
        )
        for about in section["conditions"]
        if (found := about["resolution"]) is not None
    )
    columns = (
        ("items", "in clusters"),
        ("discordance", "with host"),
        ("difference", "one test"),
        ("difference", "corrected"),
        ("margin", "of no loss"),
        ("items for", "a match"),
    )
    note = (
        "Points that are found with 80 % power; a match: equal models shown to differ by less "
        "than 1 point."
    )
    return Table("resolution", "What the items can resolve", columns, rows, (note,), "condition")


def _simultaneous(test: Mapping[str, Any] | None) -> Entry:
    if test is None or test["simultaneous"] is None:
        return Entry("-")
    interval = interval_text(test["simultaneous"])
    shown = p_value(test["p_bh"]).replace("p", "q", 1)
    return Entry(points(test["difference"], sign=True), f"{interval}, {shown}")


def _columns(section: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(column_title(about["name"]) for about in section["conditions"])


def _by(
    section: Mapping[str, Any], found: Mapping[str, Mapping[str, Entry]]
) -> tuple[tuple[str, tuple[Entry, ...]], ...]:
    names = [about["name"] for about in section["conditions"]]
    return tuple(
        (label, tuple(entries.get(name, Entry("-")) for name in names))
        for label, entries in found.items()
    )
