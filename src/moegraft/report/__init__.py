"""Reports of a run: summary.json, tables, figures and one self-contained HTML page."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "print_tables": "moegraft.report.tables",
    "summarize": "moegraft.report.summary",
    "verdicts": "moegraft.report.verdict",
    "write_report": "moegraft.report.write",
}

__all__ = ["print_tables", "summarize", "verdicts", "write_report"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import public names on first use: scipy and statsmodels take a second."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'moegraft.report' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
