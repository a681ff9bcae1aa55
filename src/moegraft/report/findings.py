"""What `blame` and `diagnose` left in a run directory, as sections of the page."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from moegraft.errors import RunError
from moegraft.report.blame import GAIN, HEADER, LOSS, BlameReport, blame_svg

Content = Mapping[str, Any]

ROUTING_CAPTIONS = {
    "routing-frequency.svg": "Share of tokens that each expert serves, and how it differs between "
    "the parents.",
    "routing-agreement.svg": "Top: experts chosen by both, on the same tokens. Bottom: how far "
    "hidden states move away. One line per configuration.",
    "coadaptation.svg": "Loss of every pairing of router and experts. Lines that are not parallel: "
    "router and experts are adapted to one another.",
}


@dataclass(frozen=True, slots=True)
class Findings:
    """Further analyses of a run; both may be missing."""

    blames: tuple[tuple[str, Content], ...] = ()
    """Folder and content of every `blame.json`, by folder."""
    diagnosis: Content | None = None


NOTHING = Findings()


def read_findings(run_dir: Path) -> Findings:
    """Read every `blame.json` below `RUN/blame`, and `diagnose.json`.

    Raises:
        RunError: one of them is damaged.
    """
    blames = [
        (str(path.parent.relative_to(run_dir)), _read(path))
        for path in sorted(run_dir.glob("blame/**/blame.json"))
    ]
    path = run_dir / "diagnose.json"
    return Findings(tuple(blames), _read(path) if path.is_file() else None)


def blame_html(blames: Sequence[tuple[str, Content]]) -> dict[str, str]:
    """Sentences, map and confirmed units of each attribution, by a short title."""
    return {_title(content): _blame(folder, content) for folder, content in blames}


def findings_markdown(findings: Findings) -> list[str]:
    """The sentences of the findings for `report.md`."""
    parts = []
    for folder, content in findings.blames:
        said = [f"- {one}" for one in BlameReport(content).sentences()]
        parts.append("\n".join([f"**Which {_title(content)}** (`{folder}`)", "", *said]))
    if findings.diagnosis is not None:
        told = [*findings.diagnosis["sentences"], *findings.diagnosis["notes"]]
        parts.append("\n".join(["**Routing**", "", *(f"- {one}" for one in told)]))
    return [part.replace("_", r"\_") for part in parts]


def _title(content: Content) -> str:
    recipe = content["recipe"]
    method = "" if recipe["method"] == "integrated" else f", {recipe['method']}"
    return f"{recipe['units']}, {content['condition']}{method}"


def _blame(folder: str, content: Content) -> str:
    report = BlameReport(content)
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in report.sentences())
    notes = "".join(f'<p class="quiet">{escape(note)}</p>' for note in content["notes"])
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title in HEADER)
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        f"{''.join(f'<td>{escape(entry)}</td>' for entry in rest)}</tr>\n"
        for first, *rest in report.rows()
    )
    # A style inside an inline SVG would hold for the whole page, which has its own rules.
    drawn = re.sub(r"<style>.*?</style>", "", blame_svg(report), flags=re.DOTALL)
    drawn = drawn.replace(f'fill="{GAIN}"', 'fill="var(--gain)"')
    drawn = drawn.replace(f'fill="{LOSS}"', 'fill="var(--loss)"')
    drawn = drawn.replace("<svg ", '<svg class="map" ', 1)
    return (
        f"<ul>{said}</ul>{notes}"
        f'<div class="scroll" tabindex="0" role="region" aria-label="map">{drawn}</div>'
        '<p class="quiet">Gradients along the straight path from host to donor, not distances '
        "between weights: a unit that moved far may carry nothing.</p>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="units"><table><thead><tr>'
        f"{heads}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
        f'<p class="notes">Compose it: <code>moegraft transfer RUN/{escape(folder)}/recipe.yaml '
        "--out DIR</code></p>\n"
    )


def _read(path: Path) -> Content:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not readable: {error}; write it again or delete it") from None
    if not isinstance(content, dict):
        raise RunError(f"{path}: expected a JSON object; write it again or delete it")
    return content
