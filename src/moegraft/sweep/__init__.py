"""Which configurations answer the question: designs, carried out as cells of one run."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "BlameRecipe": "moegraft.sweep.blame",
    "Configuration": "moegraft.sweep.design",
    "NamedConfiguration": "moegraft.sweep.design",
    "SweepRecipe": "moegraft.sweep.design",
    "design": "moegraft.sweep.design",
    "run_blame": "moegraft.sweep.blame",
    "run_sweep": "moegraft.sweep.execute",
}

__all__ = [*_EXPORTS]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that designing never imports torch (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'moegraft.sweep' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
