"""One self-contained HTML file: verdict, figures, tables, item explorer, provenance."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from moegraft.report.figures import INK
from moegraft.report.items import Row, Run, components_of, configuration_order, is_composition
from moegraft.report.summary import Summary
from moegraft.report.tables import Entry, Table
from moegraft.report.verdict import verdicts

MAX_ITEM_BYTES = 3_000_000
"""What the explorer may add to the page, so that it stays well under 5 MB."""

_MAX_ITEMS = 200
_MAX_OUTPUT = 2_000
_CAPTIONS = {
    "effects.svg": "Each of the donor's components moved alone, against the host, with 95% paired "
    "bootstrap intervals. Hollow: the interval includes 0. Intervals are not adjusted for their "
    "number; the daggers of the tables are.",
    "main-effects.svg": "Effect of each component averaged over all states of the others.",
}
# What the figures were drawn with -> what follows the page's light or dark mode.
_LIVE_COLOURS = {INK: "currentColor", "#0072b2": "var(--attention)"}
# Nothing may be loaded, not even if model text found a way around the escaping.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def render_html(
    run: Run,
    summary: Summary,
    tables: Sequence[Table],
    figures: Mapping[str, Path],
    *,
    appendix: Sequence[Table] = (),
    notes: Sequence[str] = (),
) -> str:
    """The whole page; it loads nothing from anywhere, and every text of a model is escaped.

    Args:
        run: the rows, for the explorer.
        summary: what `summarize` returned for it.
        tables: what to print, in order.
        figures: file names and paths of the SVG figures to inline.
        appendix: further tables, folded away at first.
        notes: sentences for the foot of the verdict, such as why figures are missing.
    """
    folder = Path(__file__).parent
    name = escape(summary["run"]["name"])
    parts = [_head(summary), _verdict(summary, notes)]
    if figures:
        parts.append(_section("figures", "Figures", _figures(figures)))
    parts.append(_section("tables", "Tables", "".join(map(_table, tables))))
    if appendix:
        folded = f"<details><summary>Further analyses</summary>{''.join(map(_table, appendix))}"
        parts.append(_section("appendix", "Appendix", f"{folded}</details>"))
    parts.append(_section("items-explorer", "Items", _EXPLORER))
    parts.append(_section("provenance", "Provenance", _provenance(summary)))
    items = json.dumps(explorer_items(run), ensure_ascii=True).replace("<", "\\u003c")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>moegraft: {name}</title>\n<style>\n{_read(folder / 'page.css')}</style>\n</head>\n"
        f"<body>\n{''.join(parts)}"
        f'<script type="application/json" id="items">{items}</script>\n'
        f"<script>\n{_read(folder / 'page.js')}</script>\n</body>\n</html>\n"
    )


def explorer_items(run: Run) -> dict[str, Any]:
    """Items per condition with every configuration's answer, those they disagree on first.

    At most 200 items a condition and 3 MB in all; long outputs are cut and say so.
    """
    budget = MAX_ITEM_BYTES / max(1, len(run.conditions))
    found = {}
    for condition in run.conditions:
        cells = run.items[condition]
        names = sorted(cells, key=configuration_order)
        items = {item for rows in cells.values() for item in rows}
        ranked = sorted(items, key=lambda item: (-_disagreement(cells, item), item))
        chosen, used = [], 0
        for item in ranked[:_MAX_ITEMS]:
            rows = {name: cells[name][item] for name in names if item in cells[name]}
            gold = str(next(iter(rows.values())).get("gold", ""))
            entry = {"item": item, "gold": gold, "cells": {n: _answer(r) for n, r in rows.items()}}
            used += len(json.dumps(entry))
            if used > budget:
                break
            chosen.append(entry)
        found[condition] = {"configurations": names, "items": chosen}
    return found


_EXPLORER = """
<p class="quiet">Items on which the configurations disagree come first.</p>
<div class="controls">
<label>condition <select id="condition"></select></label>
<label>left <select id="first"></select></label>
<label>right <select id="second"></select></label>
<label>show <select id="filter">
<option value="all">all</option><option value="gained">right one better</option>
<option value="lost">left one better</option><option value="right">both right</option>
<option value="wrong">both wrong</option></select></label>
<label>containing <input id="words" type="search"></label>
</div>
<p class="quiet" id="count" aria-live="polite"></p>
<div id="list"></div>
<button id="more" type="button" hidden>more</button>
"""


def _head(summary: Summary) -> str:
    run = summary["run"]
    state = "" if run["finished"] else " (not finished)"
    links = {
        "verdict": "Verdict",
        "figures": "Figures",
        "tables": "Tables",
        "items-explorer": "Items",
        "provenance": "Provenance",
    }
    anchors = "".join(f'<a href="#{key}">{title}</a>' for key, title in links.items())
    return (
        f"<h1>{escape(run['name'])}{state}</h1>\n"
        f'<p class="quiet">host {escape(str(run["host"]))}, donor {escape(str(run["donor"]))}</p>\n'
        f"<nav>{anchors}</nav>\n"
    )


def _verdict(summary: Summary, notes: Sequence[str]) -> str:
    sentences = "".join(f"<p>{escape(sentence)}</p>\n" for sentence in verdicts(summary))
    foot = "".join(f'<p class="quiet">{escape(note)}</p>\n' for note in notes)
    return _section("verdict", "Verdict", f'<div class="verdict">\n{sentences}</div>\n{foot}')


def _section(key: str, title: str, body: str) -> str:
    return f'<section id="{key}">\n<h2>{title}</h2>\n{body}\n</section>\n'


def _figures(figures: Mapping[str, Path]) -> str:
    found = []
    for name, caption in _CAPTIONS.items():
        if name in figures:
            svg = _read(figures[name])
            svg = svg[svg.index("<svg") :].replace("#ffffff", "none")
            for colour, live in _LIVE_COLOURS.items():
                svg = svg.replace(colour, live)
            prefix = name.removesuffix(".svg")
            for mark in ('id="', "url(#", 'xlink:href="#'):
                svg = svg.replace(mark, f"{mark}{prefix}-")  # two figures, one document
            below = f"<figcaption>{escape(caption)}</figcaption>"
            found.append(f"<figure>\n{svg}{below}\n</figure>\n")
    return "".join(found)


def _table(table: Table) -> str:
    def entry(one: Entry) -> str:
        marks = f"<sup>{escape(one.marks)}</sup>" if one.marks else ""
        detail = f'<span class="detail">{escape(one.detail)}</span>' if one.detail else ""
        return f"<td>{escape(one.main)}{detail}{marks}</td>"

    heads = "".join(
        f'<th scope="col">{"<br>".join(escape(part) for part in column if part)}</th>'
        for column in table.columns
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th>{"".join(map(entry, entries))}</tr>\n'
        for label, entries in table.rows
    )
    notes = "<br>".join(escape(note) for note in table.notes)
    return (
        f'<h3 id="{escape(table.key)}">{escape(table.title)}</h3>\n<div class="scroll"><table>\n'
        f'<thead><tr><th scope="col">{escape(table.first)}</th>{heads}</tr></thead>\n'
        f'<tbody>\n{rows}</tbody>\n</table></div>\n<p class="notes">{notes}</p>\n'
    )


def _provenance(summary: Summary) -> str:
    run = summary["run"]
    env = {key: value for key, value in run["env"].items() if key != "command"}
    blocks = [
        ("Commands", "\n".join(commands(summary))),
        ("Environment", yaml.safe_dump(env, sort_keys=False, allow_unicode=True)),
        ("Recipe", yaml.safe_dump(run["recipe"], sort_keys=False, allow_unicode=True)),
    ]
    return "".join(
        f"<h3>{title}</h3>\n<pre>{escape(text.strip())}</pre>\n" for title, text in blocks
    )


def commands(summary: Summary) -> list[str]:
    """The command that made the run, where it is recorded, and those that write compositions."""
    run = summary["run"]
    made = [str(run["env"]["command"])] if run["env"].get("command") else []
    for name in summary["configurations"]:
        if name != "host" and is_composition(name):
            parts = ",".join(components_of(name))
            made.append(
                f"moegraft transfer --host {run['host']} --donor {run['donor']} "
                f"--components {parts} --out {name.replace('+', '-')}"
            )
    return made


def _disagreement(cells: Mapping[str, Mapping[str, Row]], item: str) -> int:
    scores = [rows[item]["score"] for rows in cells.values() if item in rows]
    return min(sum(score >= 1 for score in scores), sum(score < 1 for score in scores))


def _answer(row: Row) -> dict[str, Any]:
    output = row.get("output")
    if output is not None and len(output) > _MAX_OUTPUT:
        output = f"{output[:_MAX_OUTPUT]} ... ({len(output)} characters)"
    return {"score": row["score"], "extracted": row.get("extracted"), "output": output}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
