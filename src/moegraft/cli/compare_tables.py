"""What `compare` and `gate` print: rankings, sentences, margins."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moegraft.compare.words import overall_title
from moegraft.report.words import points

_STYLES = {"pass": "green", "regressed": "bold red", "inconclusive": "yellow"}
_MAX_SENTENCES = 30


def show_comparison(found: Mapping[str, Any], console: Console) -> None:
    """Ranking, sentences and the methods paragraph."""
    for about in found["conditions"]:
        _show_ranking(console, f"{about['name']}: {about['num_items']:,} items", about, found)
    if (about := found["overall"]) is not None:
        title = f"Overall: {overall_title(about)}, {about['num_items']:,} items"
        _show_ranking(console, title, about, found)
    if found["settings"]["reference"] is None:
        _say(console, "Models that share a letter are not told apart by these items.")
    for note in found["notes"]:
        _say(console, f"Note: {note}.")
    console.print()
    _say(console, f"Methods. {found['methods']}")


def _show_ranking(
    console: Console, title: str, about: Mapping[str, Any], found: Mapping[str, Any]
) -> None:
    arms = found["arms"] is not None
    seeds = ("seeds %",) if arms else ()
    columns = ("recipe" if arms else "model", "score %", "95% interval", *seeds, "group")
    _say(console, title)  # as a table's title it would wrap at the table's width
    table = _table("", columns if about.get("confirmatory", True) else columns[:-1])
    for entry in about["ranking"]:
        low, high = entry["interval"]
        cells = [Text(entry["model"]), points(entry["score"])]
        cells.append(Text(f"[{points(low)}, {points(high)}]"))
        if arms:
            cells.append(" ".join(points(score) for score in entry["seeds"].values()))
        table.add_row(*cells, *([entry["group"]] if "group" in entry else []))
    console.print(table)
    shown = about["comparisons"][:_MAX_SENTENCES]
    for test in shown:
        _say(console, test["sentence"])
    if len(shown) < len(about["comparisons"]):
        left = len(about["comparisons"]) - len(shown)
        _say(console, f"... and {left} more comparisons (--json has all)")
    console.print()


def show_gate(found: Mapping[str, Any], console: Console) -> None:
    """The verdict, and the sentence of every condition."""
    table = _table(
        f"{found['new']} against {found['old']}, the deployed model",
        ("condition", "items", "old %", "new %", "difference", "margin", "verdict"),
    )
    for entry in found["conditions"]:
        table.add_row(
            Text(entry["condition"]),
            f"{entry['num_items']:,}",
            points(entry["old"]),
            points(entry["new"]),
            points(entry["difference"], sign=True),
            points(entry["margin"]),
            Text(entry["verdict"], style=_STYLES[entry["verdict"]]),
        )
    console.print(table)
    for entry in found["conditions"]:
        _say(console, f"{entry['condition']}: {entry['sentence']}")
    for note in found["notes"]:
        _say(console, f"Note: {note}.")
    console.print(Text(found["verdict"], style=_STYLES[found["verdict"]]))


def show_plan(planned: Sequence[Mapping[str, Any]], suite: Any, console: Console) -> None:
    """The margin that each condition can resolve, beside the one that the suite asks for."""
    table = _table(
        "What the items can carry",
        ("condition", "items", "discordance", "resolves", "margin", "carried", "items\nfor it"),
    )
    for entry in planned:
        table.add_row(
            Text(entry["condition"]),
            f"{entry['num_items']:,}",
            f"{points(entry['discordance'])} %",
            points(entry["resolvable"]),
            points(entry["margin"]),
            Text("yes" if entry["carried"] else "no", style="" if entry["carried"] else "yellow"),
            f"{entry['items_needed']:,}",
        )
    console.print(table)
    _say(
        console,
        f"Resolves: the smallest margin, in points, at which an equally good model passes in "
        f"{100 * suite.power:g} % of cases at a one-sided level of {suite.alpha:g}.",
    )


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # seven columns and the name of a condition in 80
    )
    for place, name in enumerate(columns):
        side = "right" if 0 < place < len(columns) - 1 else "left"
        table.add_column(name, justify=side, overflow="fold")
    return table


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)
