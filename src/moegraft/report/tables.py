"""What the tables say: accuracies, differences, gaps, effects, noise; and their terminal form."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from moegraft.report.summary import Summary, find_cell
from moegraft.report.words import (
    column_title,
    note_daggers,
    note_items,
    note_stars,
    points,
    row_title,
    stars,
)

_NARROW_LABEL = 17


@dataclass(frozen=True, slots=True)
class Entry:
    """One cell of a table: a number, what stands beside it, and its marks of significance."""

    main: str
    detail: str = ""
    marks: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table without a format: columns are conditions (task, prompting), rows configurations."""

    key: str
    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]
    notes: tuple[str, ...]
    first: str = "configuration"


def build_tables(summary: Summary, style: str = "default") -> list[Table]:
    """Every table of the report, the paper's Tables 1 and 2 first.

    Args:
        summary: what `summarize` returned.
        style: `default`, or `paper` for the paper's two tables with its columns and marks alone.
    """
    assert style in ("default", "paper"), style
    paper = style == "paper"
    tables = [accuracy_table(summary, summary["subset"], "table2", paper=paper)]
    if summary["full"]:
        tables.insert(0, accuracy_table(summary, summary["full"], "table1", paper=paper))
    if paper:
        return tables
    for reference in ("host", "donor"):
        tables.append(difference_table(summary, summary["subset"], reference))
    tables += [gap_table(summary), effect_table(summary), detail_table(summary)]
    tables += [agreement_table(summary), noise_table(summary)]
    return [table for table in tables if table.rows]


def accuracy_table(
    summary: Summary, section: Mapping[str, Any], key: str, *, paper: bool = False
) -> Table:
    """The paper's Table 1 (`full`) or 2 (`subset`): accuracy ± half-width, marks against donor."""

    def entry(cell: Mapping[str, Any]) -> Entry:
        if not cell["finished"]:
            return Entry(points(cell["score"]), f" ({cell['num_items']} items)")
        low, high = cell["bootstrap"]
        test = cell["against"].get("donor") or {}
        daggers = "" if paper else stars(test.get("p_holm"), "†")
        marks = stars(test.get("z_p"), "*") + daggers
        return Entry(points(cell["score"]), f" ±{points((high - low) / 2)}", marks)

    what = "all items" if key == "table1" else "the sampled items"
    notes = [note_items(section), note_stars("donor")]
    if not paper:
        notes.append(note_daggers(section, "donor"))
    return Table(
        key,
        f"Table {key[-1]}. Accuracy (%) on {what}, ± 95% bootstrap half-width",
        _columns(section, paper),
        _rows(summary, section, entry, paper=paper),
        (*notes, *_withheld(section)),
    )


def difference_table(summary: Summary, section: Mapping[str, Any], reference: str) -> Table:
    """Differences from host or donor in points with paired intervals, wins and losses."""

    def entry(cell: Mapping[str, Any]) -> Entry | None:
        test = cell["against"].get(reference)
        if test is None:
            return None
        if test["interval"] is None:
            return Entry(points(test["difference"], sign=True), "", stars(test["z_p"], "*"))
        marks = stars(test["z_p"], "*") + stars(test["p_holm"], "†")
        return Entry(points(test["difference"], sign=True), interval_text(test["interval"]), marks)

    notes = (note_stars(reference), note_daggers(section, reference), *_withheld(section))
    title = f"Difference from the {reference} in points [95% paired bootstrap interval]"
    rows = _rows(summary, section, entry)
    return Table(f"against_{reference}", title, _columns(section), rows, notes)


def gap_table(summary: Summary) -> Table:
    """Share of the host-donor gap that each configuration recovers."""
    section = summary["subset"]

    def entry(cell: Mapping[str, Any]) -> Entry | None:
        if cell["configuration"] in ("host", "donor") or not cell["paired"]:
            return None
        gap = cell["gap_recovered"]
        if gap is None:
            return Entry("no gap") if cell["finished"] else None
        return Entry(f"{100 * gap['value']:.0f} %", interval_text(gap["interval"], digits=0))

    note = (
        "(configuration - host) / (donor - host), paired bootstrap interval. 'no gap': the "
        "interval of donor - host includes 0, no gap is established."
    )
    title = "Gap recovered in % [95% interval]"
    return Table("gap", title, _columns(section), _rows(summary, section, entry), (note,))


def effect_table(summary: Summary) -> Table:
    """Main effects, interactions and Shapley values over the full factorial."""
    section = summary["subset"]
    found: dict[str, dict[str, Entry]] = {}
    for effect in section["effects"]:
        name = f"{effect['kind']}: {' x '.join(effect['components'])}"
        shown = Entry(points(effect["value"], sign=True), interval_text(effect["interval"]))
        found.setdefault(name, {})[effect["condition"]] = shown
    names = [about["name"] for about in section["conditions"]]
    rows = tuple(
        (name, tuple(by.get(condition, Entry("-")) for condition in names))
        for name, by in found.items()
    )
    note = (
        "main: effect of moving the component, averaged over all states of the others; "
        "interaction: how much more one gives when the other is there too; shapley: shares that "
        "add up to (all components - host). Intervals are for one effect each; summary.json has "
        "simultaneous ones."
    )
    title = "Effects of components in points [95% paired bootstrap interval]"
    return Table("effects", title, _columns(section), rows, (note,), "effect")


def detail_table(summary: Summary) -> Table:
    """Mean gold log-probability, and how often generation was cut off or looped."""
    section = summary["subset"]

    def entry(cell: Mapping[str, Any]) -> Entry:
        gold = cell["gold_logprob"]
        shares = [cell["truncated"], cell["looped"]]
        cut, loop = ("-" if share is None else f"{100 * share:.0f}" for share in shares)
        return Entry("-" if gold is None else f"{gold:.2f}", f" {cut}/{loop}")

    note = (
        "Mean log-probability of the gold answer; % of items cut off at the token budget / caught "
        "in a repetition loop."
    )
    title = "Gold log-probability, % truncated / % looped"
    return Table("details", title, _columns(section), _rows(summary, section, entry), (note,))


def agreement_table(summary: Summary) -> Table:
    """Sampled items against all items, for the confirmed configurations."""
    rows = tuple(
        (
            f"{row_title(entry['configuration'], summary)}, {entry['condition']}",
            (
                Entry(points(entry["subset"]), f" (n={entry['num_subset']})"),
                Entry(points(entry["full"]), f" (n={entry['num_full']})"),
                Entry(points(entry["difference"], sign=True)),
                Entry("yes" if entry["inside"] else "no"),
            ),
        )
        for entry in summary["agreement"]
    )
    columns = (("subset", ""), ("all items", ""), ("difference", ""), ("inside", "interval"))
    note = "inside: the accuracy on all items lies in the subset's 95% bootstrap interval."
    return Table("agreement", "Agreement of subset and full set", columns, rows, (note,), "cell")


def noise_table(summary: Summary) -> Table:
    """The A/A control: the same configuration scored twice."""
    rows = tuple(
        (
            f"{entry['configuration']}, {entry['condition']}",
            (
                Entry(f"{entry['flips']} of {entry['num_items']}"),
                Entry(f"{entry['max_difference']:.2g}"),
                Entry(points(entry["mean_difference"], sign=True)),
            ),
        )
        for entry in summary["noise_floor"]
    )
    columns = (("items", "that changed"), ("largest", "difference"), ("shift", "in points"))
    note = "The host scored again after a swap, under another batch plan: differences of this size"
    title = "Noise floor (A/A control)"
    return Table("noise", title, columns, rows, (f"{note} are arithmetic, not skill.",), "cell")


def print_tables(
    summary: Summary, console: Console | None = None, *, style: str = "default"
) -> None:
    """Print the accuracy tables, and in the default style the differences and the noise floor."""
    console = console or Console()
    shown = ("table1", "table2", "against_host", "noise")
    for table in build_tables(summary, style):
        if table.key in shown:
            print_table(table, console)


def print_table(table: Table, console: Console) -> None:
    """Print one table; conditions that do not fit the width follow in further blocks."""
    narrow = _total_width(table) > console.width
    labels = [fold_label(label, narrow) for label, _ in table.rows]
    cells = [[_text(entry, narrow) for entry in entries] for _, entries in table.rows]
    headers = [_header(column) for column in table.columns]
    widths = [
        max([_width(headers[place]), *(_width(row[place]) for row in cells)])
        for place in range(len(headers))
    ]
    label_width = max(_width(Text(label)) for label in [*labels, table.first])
    console.print(Text(table.title, style="bold"))
    for start, stop in _blocks(widths, console.width - label_width - 2):
        block = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        block.add_column(table.first, no_wrap=True)
        for header in headers[start:stop]:
            block.add_column(header, justify="left", no_wrap=True)
        for label, row in zip(labels, cells, strict=True):
            block.add_row(label, *row[start:stop])
        console.print(block)
    for note in table.notes:
        console.print(Text(note, style="dim"))
    console.print()


def _columns(section: Mapping[str, Any], paper: bool = False) -> tuple[tuple[str, str], ...]:
    return tuple(column_title(about["name"], paper=paper) for about in section["conditions"])


def _rows(
    summary: Summary, section: Mapping[str, Any], entry: Any, *, paper: bool = False
) -> tuple[tuple[str, tuple[Entry, ...]], ...]:
    """One row per configuration that has at least one entry; a missing cell shows a dash."""
    rows = []
    for configuration in summary["configurations"]:
        cells = [
            find_cell(section, configuration, about["name"]) for about in section["conditions"]
        ]
        found = [cell and entry(cell) for cell in cells]
        if any(found):
            title = row_title(configuration, summary, paper=paper)
            rows.append((title, tuple(one or Entry("-") for one in found)))
    return tuple(rows)


def _withheld(section: Mapping[str, Any]) -> list[str]:
    names = [about["name"] for about in section["conditions"] if not about["binary"]]
    notes = []
    if names:
        notes.append(f"{', '.join(names)}: scores are not 0/1, tests for proportions are withheld.")
    if any(not cell["finished"] for cell in section["cells"]):
        notes.append("(n items): the cell is not finished; no tests.")
    unpaired = {cell["configuration"] for cell in section["cells"] if not cell["paired"]}
    unpaired -= {cell["configuration"] for cell in section["cells"] if not cell["finished"]}
    if unpaired:
        notes.append(f"{', '.join(sorted(unpaired))}: own prompts, so paired tests are withheld.")
    return notes


def interval_text(interval: Sequence[float], digits: int = 1) -> str:
    """The ends of an interval of fractions, in points: ` [-1.0, 2.5]`."""
    low, high = (round(100 * end, digits) + 0.0 for end in interval)  # + 0.0: no minus zero
    return f" [{low:.{digits}f}, {high:.{digits}f}]"


def _text(entry: Entry, narrow: bool) -> Text:
    broken = narrow and "[" in entry.detail
    detail = entry.detail.replace(" ", "\n", 1) if broken else entry.detail
    if narrow and "±" in detail:
        detail = detail.strip()
    marks = Text(entry.marks, style="bold")
    if broken:
        return Text.assemble(entry.main, marks, (detail, "dim"))
    gap = "" if narrow or not entry.marks else " "
    return Text.assemble(entry.main, (detail, "dim"), gap, marks)


def _header(column: tuple[str, str]) -> Text:
    return Text("\n".join(part for part in column if part))


def fold_label(label: str, narrow: bool) -> str:
    """A configuration's name, on several lines where room is narrow, broken before a plus."""
    lines = [""]
    for piece in re.split(r"(?=\+)|(?<=[- ])", label):
        if narrow and lines[-1] and len(lines[-1] + piece) > _NARROW_LABEL:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _width(text: Text) -> int:
    return max((len(line) for line in text.plain.split("\n")), default=0)


def _total_width(table: Table) -> int:
    """Width of the table when nothing is folded."""
    columns = [
        max([_width(_header(column)), *(_width(_text(row[place], False)) for _, row in table.rows)])
        for place, column in enumerate(table.columns)
    ]
    return sum(columns) + 2 * len(columns) + max(len(label) for label, _ in table.rows) + 2


def _blocks(widths: Sequence[int], room: int) -> list[tuple[int, int]]:
    blocks, start, used = [], 0, 0
    for place, width in enumerate(widths):
        if place > start and used + width + 2 > room:
            blocks.append((start, place))
            start, used = place, 0
        used += width + 2  # a space of padding, and the column of the box
    return [*blocks, (start, len(widths))]
