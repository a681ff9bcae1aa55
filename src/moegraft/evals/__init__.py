"""Evaluation: lm-eval's tasks, scored faster on a model whose parts change in place."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Condition": "moegraft.evals.condition",
    "Item": "moegraft.evals.condition",
    "Scorer": "moegraft.evals.scorer",
    "load_condition": "moegraft.evals.harness",
    "list_tasks": "moegraft.evals.harness",
    "score_items": "moegraft.evals.judge",
}

__all__ = [*_EXPORTS]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import public names on first use (PEP 562): the scorer needs torch, the store does not."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'moegraft.evals' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
