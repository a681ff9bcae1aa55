"""Tables as Markdown, LaTeX (booktabs) and CSV."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moegraft.report.summary import Summary
from moegraft.report.tables import Entry, Table

_LATEX_SPECIALS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
}
_CSV_CELL = (
    "configuration",
    "condition",
    "finished",
    "num_items",
    "num_correct",
    "score",
    "wilson_low",
    "wilson_high",
    "bootstrap_low",
    "bootstrap_high",
    "gold_logprob",
    "mean_tokens",
    "truncated",
    "looped",
    "gap_recovered",
    "gap_recovered_low",
    "gap_recovered_high",
)
_CSV_TEST = (
    "difference",
    "difference_low",
    "difference_high",
    "z",
    "z_p",
    "test",
    "p",
    "p_holm",
    "p_bh",
    "p_max_t",
    "simultaneous_low",
    "simultaneous_high",
    "wins",
    "losses",
    "ties",
)


def to_markdown(table: Table) -> str:
    """One table in GitHub's Markdown, its notes below."""

    def cell(text: str) -> str:
        return text.replace("|", r"\|").replace("*", r"\*").replace("_", r"\_")

    def entry(one: Entry) -> str:
        marks = f"<sup>{cell(one.marks)}</sup>" if one.marks else ""
        return f"{cell(one.main)}{cell(one.detail)}{marks}"

    head = [table.first, *(" ".join(part for part in column if part) for column in table.columns)]
    lines = [f"**{cell(table.title)}**", "", _row(cell(title) for title in head)]
    lines.append(_row(["---", *("---:" for _ in table.columns)]))
    lines += [_row([cell(label), *map(entry, entries)]) for label, entries in table.rows]
    return "\n".join([*lines, "", *(f"{cell(note)}  " for note in table.notes)]) + "\n"


def to_latex(table: Table) -> str:
    """One `table` environment; needs only the package booktabs."""

    def entry(one: Entry) -> str:
        marks = one.marks.replace("†", r"\dagger ").strip()
        raised = f"$^{{{marks}}}$" if marks else ""
        return latex_escape(one.main) + latex_escape(one.detail) + raised

    def heads(part: int) -> str:
        return " & ".join(latex_escape(column[part]) for column in table.columns)

    rows = [rf"{latex_escape(table.first)} & {heads(0)} \\"]
    if any(second for _, second in table.columns):
        rows.append(rf" & {heads(1)} \\")
    rows.append(r"\midrule")
    for label, entries in table.rows:
        rows.append(rf"{latex_escape(label)} & {' & '.join(map(entry, entries))} \\")
    title = re.sub(r"^Table \d+\. ", "", table.title)  # LaTeX numbers tables itself
    caption = " ".join([f"{title}.", *table.notes])
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\begin{{tabular}}{{l{'l' * len(table.columns)}}}",
            r"\toprule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{latex_escape(caption)}}}",
            rf"\label{{tab:{table.key.replace('_', '-')}}}",
            r"\end{table}",
            "",
        ]
    )


def latex_escape(text: str) -> str:
    """`text` with every character that LaTeX would interpret made literal."""
    return "".join(_LATEX_SPECIALS.get(character, character) for character in text)


def to_csv(summary: Summary) -> str:
    """One row per cell of Tables 1 (`full`) and 2 (`subset`), with every number behind it."""
    target = io.StringIO()
    tests = [f"{reference}_{name}" for reference in ("host", "donor") for name in _CSV_TEST]
    writer = csv.DictWriter(target, ["table", *_CSV_CELL, *tests], lineterminator="\n")
    writer.writeheader()
    for table in ("full", "subset"):
        for cell in (summary[table] or {"cells": []})["cells"]:
            writer.writerow({"table": table, **_flat(cell)})
    return target.getvalue()


def _flat(cell: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: cell.get(name) for name in _CSV_CELL}
    flat |= _ends("wilson", cell["wilson"]) | _ends("bootstrap", cell["bootstrap"])
    gap = cell["gap_recovered"]
    flat["gap_recovered"] = gap and gap["value"]
    flat |= _ends("gap_recovered", gap and gap["interval"])
    for reference, test in cell["against"].items():
        flat |= {f"{reference}_{name}": test.get(name) for name in _CSV_TEST}
        flat |= _ends(f"{reference}_difference", test["interval"])
        flat |= _ends(f"{reference}_simultaneous", test["simultaneous"])
    return flat


def _ends(name: str, interval: Sequence[float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
