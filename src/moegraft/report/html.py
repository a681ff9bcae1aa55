"""One self-contained HTML page: verdict, figures, tables, item explorer, provenance."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from moegraft.report.cube import cubes
from moegraft.report.explorer import EXPLORER, explorer_items
from moegraft.report.figures import INK
from moegraft.report.findings import NOTHING, ROUTING_CAPTIONS, Findings, blame_html
from moegraft.report.forest import forest_plots
from moegraft.report.heatmap import heatmaps
from moegraft.report.items import Run, components_of, is_composition
from moegraft.report.summary import Summary
from moegraft.report.tables import Entry, Table
from moegraft.report.verdict import verdicts
from moegraft.report.waterfall import waterfall
from moegraft.report.words import breakable

_CAPTIONS = {
    "effects.svg": "Each of the donor's components moved alone, against the host, with 95% paired "
    "bootstrap intervals. Hollow: the interval includes 0. Intervals are not adjusted for their "
    "number; the daggers of the tables are.",
    "main-effects.svg": "Effect of each component averaged over all states of the others.",
}
_FOREST = (
    "Dot: paired difference. Bar: 95% interval of that one difference. Line: intervals that hold "
    "for all differences of all conditions at once. Filled and coloured (blue above, orange "
    "below): established by the Holm-adjusted exact test, as in the verdict; close to 0 line and "
    "test may differ."
)
_HEATMAP = (
    "Row minus column, in points. Framed and bold: the interval that is simultaneous over all "
    "pairs of all conditions excludes 0. For exploration; the verdict rests on the tests against "
    "host and donor."
)
_CUBE = (
    "Corners: accuracy. Edges: what moving one more component from the donor changes; parallel "
    "edges move the same component, so edges that differ show an interaction. Colour: the "
    "interval that is simultaneous over all pairs excludes 0 (blue gain, orange loss). Waterfall: "
    "Shapley shares add up to all of these minus host; lines are simultaneous intervals of a step."
)
# What the figures were drawn with -> what follows the page's light or dark mode.
_LIVE_COLOURS = {INK: "currentColor", "#0072b2": "var(--blue)", "#d55e00": "var(--vermilion)"}
# Nothing may be loaded, not even if model text found a way around the escaping. Heat maps hold
# their colours as images within the page.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)


def render_html(
    run: Run,
    summary: Summary,
    tables: Sequence[Table],
    figures: Mapping[str, Path],
    *,
    appendix: Sequence[Table] = (),
    findings: Findings = NOTHING,
    notes: Sequence[str] = (),
) -> str:
    """The whole page; it loads nothing from anywhere, and every text of a model is escaped.

    Args:
        run: the rows, for the explorer.
        summary: what `summarize` returned for it.
        tables: what to print, in order.
        figures: file names and paths of the SVG figures to inline.
        appendix: further tables, folded away at first.
        findings: what `blame` and `diagnose` left in the run.
        notes: sentences for the foot of the verdict, such as why figures are missing.
    """
    folder = Path(__file__).parent
    noise = [table for table in tables if table.key == "noise"]
    others = [table for table in tables if table.key != "noise"]
    folded = f"<details><summary>Further analyses</summary>{_tables(appendix)}</details>"
    sections = [
        ("verdict", "Verdict", _verdict(summary, notes)),
        ("against-parents", "Against host and donor", _forests(summary)),
        ("pairs", "Every pair", _pairs(summary)),
        ("components", "Which component", _components(summary, figures)),
        ("blame", "Which layer, which expert", _tabs(blame_html(findings.blames))),
        ("routing", "Routing", _routing(findings, figures)),
        ("items-explorer", "Items", EXPLORER),
        ("tables", "Tables", _tables(others)),
        ("noise-floor", "Noise floor", _tables(noise)),
        ("appendix", "Appendix", folded if appendix else ""),
        ("provenance", "Commands and provenance", _provenance(summary, findings)),
    ]
    shown = [section for section in sections if section[2]]
    items = json.dumps(explorer_items(run), ensure_ascii=True).replace("<", "\\u003c")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>moegraft: {escape(summary['run']['name'])}</title>\n"
        f"<style>\n{_read(folder / 'page.css')}</style>\n</head>\n"
        f"<body>\n{_head(summary, shown)}<main>\n"
        f"{''.join(_section(*section) for section in shown)}</main>\n"
        f'<script type="application/json" id="items">{items}</script>\n'
        f"<script>\n{_read(folder / 'page.js')}</script>\n</body>\n</html>\n"
    )


def _head(summary: Summary, sections: Sequence[tuple[str, str, str]]) -> str:
    run = summary["run"]
    state = "" if run["finished"] else " (not finished)"
    anchors = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    return (
        f"<header><h1>{escape(run['name'])}{state}</h1>\n"
        f'<p class="quiet">host {escape(str(run["host"]))}, donor {escape(str(run["donor"]))}</p>\n'
        f'<nav aria-label="Sections">{anchors}</nav></header>\n'
    )


def _section(key: str, title: str, body: str) -> str:
    return f'<section id="{key}">\n<h2>{title}</h2>\n{body}\n</section>\n'


def _verdict(summary: Summary, notes: Sequence[str]) -> str:
    conditions = tuple(f"{name}: " for name in summary["conditions"])
    parts = []
    for sentence in verdicts(summary):
        lead = next((name for name in conditions if sentence.startswith(name)), "")
        named = f"<strong>{escape(lead.strip())}</strong> " if lead else ""
        said, found, limits = sentence.removeprefix(lead).partition(" What ")
        parts.append(f"<p>{named}{escape(said)}")
        parts.append(
            f'<span class="limits">What {escape(limits)}</span></p>\n' if found else "</p>\n"
        )
    foot = "".join(f'<p class="quiet">{escape(note)}</p>\n' for note in notes)
    return f'<div class="verdict">\n{"".join(parts)}</div>\n{foot}'


def _forests(summary: Summary) -> str:
    plots = {
        f"against the {reference}": _grid(forest_plots(summary["subset"], reference))
        for reference in ("host", "donor")
    }
    found = {title: body for title, body in plots.items() if body}
    return f'{_tabs(found)}<p class="notes">{_FOREST}</p>' if found else ""


def _pairs(summary: Summary) -> str:
    found = heatmaps(summary["subset"])
    return f'{_tabs(found)}<p class="notes">{_HEATMAP}</p>' if found else ""


def _components(summary: Summary, figures: Mapping[str, Path]) -> str:
    section = summary["subset"]
    names = [about["name"] for about in section["conditions"]]
    drawn = {name: _grid([*cubes(section, name), waterfall(section, name)]) for name in names}
    found = {name: body for name, body in drawn.items() if body}
    body = f'{_tabs(found)}<p class="notes">{_CUBE}</p>' if found else ""
    return body + _figures(figures, _CAPTIONS)


def _routing(findings: Findings, figures: Mapping[str, Path]) -> str:
    if findings.diagnosis is None:
        return ""
    told = [*findings.diagnosis["sentences"], *findings.diagnosis["notes"]]
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in told)
    return f"<ul>{said}</ul>{_figures(figures, ROUTING_CAPTIONS)}"


def _grid(pictures: Iterable[str]) -> str:
    found = "".join(picture for picture in pictures)
    return f'<div class="grid">{found}</div>' if found else ""


def _tabs(panels: Mapping[str, str]) -> str:
    """Panels one below the other, which the page's script turns into tabs."""
    if len(panels) < 2:
        return "".join(panels.values())
    parts = [
        f'<div class="panel"><h3>{escape(title)}</h3>{body}</div>' for title, body in panels.items()
    ]
    return f'<div class="tabs">{"".join(parts)}</div>'


def _figures(figures: Mapping[str, Path], captions: Mapping[str, str]) -> str:
    found = []
    for name, caption in captions.items():
        if name in figures:
            svg = _live(_read(figures[name]), name.removesuffix(".svg"))
            below = f"<figcaption>{escape(caption)}</figcaption>"
            label = escape(name.removesuffix(".svg").replace("-", " "))
            about = f'class="scroll" tabindex="0" role="region" aria-label="{label}"'
            found.append(f"<figure>\n<div {about}>{svg}</div>{below}\n</figure>\n")
    return "".join(found)


def _live(svg: str, prefix: str) -> str:
    """A figure of matplotlib as part of the page: its colours, and ids that are its own."""
    svg = svg[svg.index("<svg") :].replace("#ffffff", "none")
    for colour, live in _LIVE_COLOURS.items():
        svg = svg.replace(colour, live)
    for mark in ('id="', "url(#", 'xlink:href="#'):
        svg = svg.replace(mark, f"{mark}{prefix}-")  # several figures, one document
    return re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)


def _tables(tables: Sequence[Table]) -> str:
    return "".join(map(_table, tables))


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
        f'<tr><th scope="row">{breakable(label)}</th>{"".join(map(entry, entries))}</tr>\n'
        for label, entries in table.rows
    )
    key, notes = escape(table.key), "<br>".join(escape(note) for note in table.notes)
    return (
        f'<h3 id="{key}">{escape(table.title)}</h3>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{key}"><table>\n'
        f'<thead><tr><th scope="col">{escape(table.first)}</th>{heads}</tr></thead>\n'
        f'<tbody>\n{rows}</tbody>\n</table></div>\n<p class="notes">{notes}</p>\n'
    )


def _provenance(summary: Summary, findings: Findings) -> str:
    run = summary["run"]
    env = {key: value for key, value in run["env"].items() if key != "command"}
    made = f"<h3>Commands</h3>\n<pre>{escape(chr(10).join(commands(summary, findings)))}</pre>\n"
    return made + "".join(
        f"<details><summary>{title}</summary>\n<pre>{escape(_yaml(content))}</pre></details>\n"
        for title, content in (("Environment", env), ("Recipe", run["recipe"]))
    )


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).strip()


def commands(summary: Summary, findings: Findings = NOTHING) -> list[str]:
    """The commands that made the run and its findings, where recorded, and its compositions."""
    run = summary["run"]
    made = [str(run["env"]["command"])] if run["env"].get("command") else []
    made += [str(content["command"]) for _, content in findings.blames if content.get("command")]
    for name in summary["configurations"]:
        if name != "host" and is_composition(name):
            parts = ",".join(components_of(name))
            made.append(
                f"moegraft transfer --host {run['host']} --donor {run['donor']} "
                f"--components {parts} --out {name.replace('+', '-')}"
            )
    return made


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
