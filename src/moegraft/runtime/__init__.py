"""Live models: load once, then swap components in place and back."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Host": "moegraft.runtime.host",
    "MemoryEstimate": "moegraft.runtime.memory",
    "Patch": "moegraft.runtime.swap",
    "estimate_memory": "moegraft.runtime.fit",
    "swapped": "moegraft.runtime.swap",
}

__all__ = ["Host", "MemoryEstimate", "Patch", "estimate_memory", "swapped"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'moegraft.runtime' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
