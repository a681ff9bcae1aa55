"""Find the experts that serve every domain, refine what they know, start other models from it."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Adaptation": "moegraft.xpert.start",
    "CompareRecipe": "moegraft.xpert.compare_recipe",
    "Decomposition": "moegraft.xpert.decompose",
    "Identification": "moegraft.xpert.identify",
    "Knowledge": "moegraft.xpert.knowledge",
    "Resizing": "moegraft.xpert.resize",
    "RoutingTable": "moegraft.xpert.counts",
    "Start": "moegraft.xpert.start",
    "compare_starts": "moegraft.xpert.compare",
    "decompose_experts": "moegraft.xpert.knowledge",
    "identify_experts": "moegraft.xpert.identify",
    "initialise_target": "moegraft.xpert.adapt",
    "open_knowledge": "moegraft.xpert.knowledge",
    "read_counts": "moegraft.xpert.counts",
    "read_target": "moegraft.xpert.target",
    "routing_shift": "moegraft.xpert.shift",
}

__all__ = [*_EXPORTS]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that ranking counts never imports torch (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'moegraft.xpert' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
