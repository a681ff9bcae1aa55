"""The pairwise heatmap: every configuration against every other, as a table that can be read."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from moegraft.report.svg import direction
from moegraft.report.words import breakable, points

_STRONGEST = 55
"""Percent of colour at most, so that the numbers stay readable on it."""

_Pairs = Mapping[tuple[str, str], tuple[float, Sequence[float]]]


def heatmaps(section: Mapping[str, Any]) -> dict[str, str]:
    """An HTML table per condition: row minus column in points; bold and framed where established.

    Established: the interval that is simultaneous over all pairs of all conditions excludes 0.
    """
    strongest = max((abs(pair["value"]) for pair in section["pairs"]), default=0.0) or 1.0
    found = {}
    for about in section["conditions"]:
        pairs = find_pairs(section, about["name"])
        if pairs:
            found[about["name"]] = _table(about["name"], pairs, strongest)
    return found


def find_pairs(section: Mapping[str, Any], condition: str) -> _Pairs:
    """(a, b) -> a minus b with its simultaneous interval, in both directions."""
    found: dict[tuple[str, str], tuple[float, Sequence[float]]] = {}
    for pair in section["pairs"]:
        if pair["condition"] == condition:
            value, (low, high) = pair["value"], pair["simultaneous"]
            found[pair["a"], pair["b"]] = value, (low, high)
            found[pair["b"], pair["a"]] = -value, (-high, -low)
    return found


def _table(condition: str, pairs: _Pairs, strongest: float) -> str:
    names = list(dict.fromkeys(b for pair in pairs for b in reversed(pair)))
    heads = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
    rows = "".join(
        f'<tr><th scope="row">{breakable(row)}</th>'
        f"{''.join(_cell(row, column, pairs, strongest) for column in names)}</tr>\n"
        for row in names
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(condition)}, pairs">'
        f'<table class="heat">\n<thead><tr><td class="quiet">row minus column</td>{heads}</tr>'
        f"</thead>\n<tbody>\n{rows}</tbody></table></div>\n"
    )


def _cell(row: str, column: str, pairs: _Pairs, strongest: float) -> str:
    if (row, column) not in pairs:
        return '<td class="same"></td>'
    value, interval = pairs[row, column]
    share = _STRONGEST * min(1.0, abs(value) / strongest)
    tone = "gain" if value > 0 else "loss"
    sure = "" if direction(value, interval) == "open" else " sure"
    low, high = (points(end) for end in interval)
    title = f"{row} - {column}: {points(value, sign=True)} [{low}, {high}]"
    return (
        f'<td class="{tone}{sure}" style="--mix:{share:.0f}%" title="{escape(title)}">'
        f"{points(value, sign=True)}</td>"
    )
