"""Compose post-trained Mixture-of-Experts language models."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "MoegraftError": "moegraft.errors",
    "open_checkpoint": "moegraft.checkpoint",
    "Host": "moegraft.runtime",
    "Patch": "moegraft.runtime",
    "swapped": "moegraft.runtime",
    "composed": "moegraft.transfer",
    "TransferRecipe": "moegraft.transfer",
    "plan_transfer": "moegraft.transfer",
    "apply_plan": "moegraft.transfer",
    "lm": "moegraft.transfer",
}

__all__ = [  # noqa: PLE0604
    "__version__",
    *_EXPORTS,  # pyright: ignore[reportUnsupportedDunderAll]
]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `import moegraft` costs milliseconds (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'moegraft' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
