"""Compare models on the same items: rank them, block a regression, read anyone's results."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "compare": "moegraft.compare.table",
    "gate": "moegraft.compare.gate",
    "pair": "moegraft.compare.results",
    "read_results": "moegraft.compare.imports",
}

__all__ = ["compare", "gate", "pair", "read_results"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import public names on first use: scipy and statsmodels take a second."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'moegraft.compare' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
