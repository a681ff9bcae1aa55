"""How reports say things: points, p values, marks, and the titles of rows and columns."""

from collections.abc import Mapping
from html import escape
from pathlib import PurePath
from typing import Any

_PAPER_TITLES = {
    "paper_boolq": ("BoolQ", "Zero shot"),
    "paper_gsm8k_cot": ("GSM8K", "CoT"),
    "paper_arc_challenge/0-shot": ("ARC-C", "Zero shot"),
    "paper_arc_challenge/5-shot": ("ARC-C", "5 shot"),
}
PAPER_CONDITIONS = tuple(_PAPER_TITLES)
"""In the order of the paper's columns."""

_PAPER_ROWS = {
    "router": "Router only",
    "attention": "Attention only",
    "experts": "Experts only",
    "router+attention": "Router + Attn",
    "router+experts": "Router + Exp",
    "attention+experts": "Attn + Exp",
    "router+attention+experts": "Full transfer",
}


def points(share: float | None, *, sign: bool = False) -> str:
    """A fraction in percent or points with one decimal: 0.0342 -> `3.4`; no minus zero."""
    if share is None:
        return "-"
    text = f"{100 * share:{'+' if sign else ''}.1f}"
    return text.replace("-0.0", "0.0").replace("+0.0", "0.0") if text[1:] == "0.0" else text


def against(test: Mapping[str, Any]) -> str:
    """`+3.4 points [1.0, 5.8] against`, where the name of the other one follows."""
    low, high = test["interval"]
    if low == high == 0:  # an interval without width would look like certainty
        return "on every single item equal to"
    return f"{points(test['difference'], sign=True)} points [{points(low)}, {points(high)}] against"


def p_value(p: float) -> str:
    """`p < .001`, or three decimals without the leading zero."""
    if p < 0.001:
        return "p < .001"
    return f"p = {p:.3f}".replace("0.", ".", 1) if p < 0.9995 else "p = 1"


def stars(p: float | None, mark: str) -> str:
    """One mark below .05, two below .01, three below .001, as in the paper."""
    return mark * sum(int(p < level) for level in (0.05, 0.01, 0.001)) if p is not None else ""


def short_name(source: str) -> str:
    """A checkpoint's name without the folders or the organisation before it."""
    return PurePath(source).name if not source.startswith("nano:") else source


def breakable(name: str) -> str:
    """A name as HTML that may wrap after each plus, for narrow screens."""
    return escape(name).replace("+", "+<wbr>")


def row_title(configuration: str, summary: Mapping[str, Any], *, paper: bool = False) -> str:
    """The configuration's name; in the paper's style its row title."""
    if not paper:
        return configuration
    if configuration in ("host", "donor"):
        return f"{short_name(str(summary['run'][configuration]))} checkpoint"
    return _PAPER_ROWS.get(configuration, configuration)


def column_title(condition: str, *, paper: bool = False) -> tuple[str, str]:
    """Task and prompting of a condition; in the paper's style its column title."""
    if paper and condition in _PAPER_TITLES:
        return _PAPER_TITLES[condition]
    task, _, prompting = condition.partition("/")
    return task.removeprefix("paper_"), prompting


def note_items(section: Mapping[str, Any]) -> str:
    """Items per cell, in one sentence."""
    counts = {about["name"]: about["num_items"] for about in section["conditions"]}
    if len(set(counts.values())) == 1:
        return f"n = {next(iter(counts.values()))} items per cell."
    return "n = " + ", ".join(f"{count} ({name})" for name, count in counts.items()) + "."


def note_stars(reference: str) -> str:
    """What the stars are."""
    return (
        f"* p < .05, ** p < .01, *** p < .001 against the {reference}: the paper's two-proportion "
        "z-test (unpaired, not adjusted)."
    )


def note_daggers(section: Mapping[str, Any], reference: str) -> str:
    """What the daggers are."""
    size = section["families"][reference]
    return (
        f"† p < .05, †† p < .01, ††† p < .001 against the {reference}: exact McNemar test on "
        "paired items (sign flips by cluster where items share a passage or scores are not 0/1), "
        f"Holm-adjusted over {size} tests."
    )
