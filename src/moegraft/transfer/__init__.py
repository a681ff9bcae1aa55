"""Move components, layers and single experts from donor checkpoints into a host."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Comparison": "moegraft.transfer.diff",
    "Selection": "moegraft.transfer.recipe",
    "TransferRecipe": "moegraft.transfer.recipe",
    "component_recipe": "moegraft.transfer.recipe",
    "Plan": "moegraft.transfer.plan",
    "plan_transfer": "moegraft.transfer.plan",
    "apply_plan": "moegraft.transfer.apply",
    "compare_checkpoints": "moegraft.transfer.diff",
    "configuration_patches": "moegraft.transfer.live",
    "patches": "moegraft.transfer.live",
    "summarize_checkpoint": "moegraft.transfer.summary",
    "composed": "moegraft.transfer.live",
    "lm": "moegraft.transfer.live",
}

__all__ = [*_EXPORTS]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that planning never imports torch (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'moegraft.transfer' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
