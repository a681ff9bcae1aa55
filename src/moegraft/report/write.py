"""Every file of a report, written from the items of a run."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from moegraft.errors import OutputError
from moegraft.report.appendix import build_appendix
from moegraft.report.figures import can_draw, write_figures
from moegraft.report.findings import Findings, findings_markdown, read_findings
from moegraft.report.formats import to_csv, to_latex, to_markdown
from moegraft.report.html import commands, render_html
from moegraft.report.items import read_run
from moegraft.report.routing_figures import write_diagnosis_figures
from moegraft.report.summary import Summary, summarize
from moegraft.report.tables import Table, build_tables
from moegraft.report.verdict import verdicts

NO_FIGURES = "Figures are left out because matplotlib is missing: pip install 'moegraft[eval]'."

_log = logging.getLogger(__name__)


def write_report(run_dir: Path | str, style: str = "default") -> dict[str, Path]:
    """Write `summary.json`, `report.md`, `report.html`, `tables.tex`, `tables.csv`, `figures/`.

    Needs neither torch nor the checkpoints; without matplotlib the figures are left out, which
    the report and the log say. Works on unfinished runs too, and says so.

    Args:
        run_dir: a run directory of `sweep`.
        style: `default`, or `paper` for the paper's two tables with its columns unchanged.

    Returns:
        The path of each file by its name.

    Raises:
        RunError: no run stands there, it is damaged, or prompts of one item differ.
        OutputError: the disk is full or not writable.
    """
    run = read_run(run_dir)
    findings = read_findings(run.path)
    try:
        summary = summarize(run)
        tables = build_tables(summary, style)
        appendix = build_appendix(summary) if style == "default" else []
        figures = write_figures(summary, run.path / "figures") if can_draw() else {}
        if can_draw() and findings.diagnosis is not None:
            figures |= write_diagnosis_figures(findings.diagnosis, run.path / "figures")
        notes = [str(note) for note in run.env.get("notes", [])]
        if not can_draw():
            _log.warning(NO_FIGURES)
            notes.append(NO_FIGURES)
        svgs = {name: path for name, path in figures.items() if name.endswith(".svg")}
        texts = {
            "report.md": _markdown(
                summary, tables, appendix=appendix, figures=svgs, findings=findings, notes=notes
            ),
            "report.html": render_html(
                run, summary, tables, svgs, appendix=appendix, findings=findings, notes=notes
            ),
            "tables.tex": "\n".join(map(to_latex, [*tables, *appendix])),
            "tables.csv": to_csv(summary),
        }
        for name, text in texts.items():
            (run.path / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{run.path}: report not written: {error.strerror or error}") from None
    paths = {name: run.path / name for name in ("summary.json", *texts)}
    return {**paths, **{f"figures/{name}": path for name, path in figures.items()}}


def _markdown(
    summary: Summary,
    tables: Sequence[Table],
    *,
    appendix: Sequence[Table],
    figures: Iterable[str],
    findings: Findings,
    notes: Sequence[str],
) -> str:
    run = summary["run"]
    parts = [f"# {run['name']}", f"Host `{run['host']}`, donor `{run['donor']}`.", "## Verdict"]
    parts += [f"- {sentence}".replace("_", r"\_") for sentence in verdicts(summary)]
    parts += notes
    light = sorted(name for name in figures if not name.endswith("-dark.svg"))
    parts += [f"![{name.removesuffix('.svg')}](figures/{name})" for name in light]
    told = findings_markdown(findings)
    parts += ["## Why", *told] if told else []
    parts += ["## Tables", *map(to_markdown, tables)]
    if appendix:
        parts += ["## Appendix", *map(to_markdown, appendix)]
    parts.append("## Commands")
    parts.append("\n".join(["```", *commands(summary, findings), "```"]))
    return "\n\n".join(parts) + "\n"
