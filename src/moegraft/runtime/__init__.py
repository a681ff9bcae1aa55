"""Live models: load once, swap components in microseconds, watch the routing."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Host": "moegraft.runtime.host",
    "Patch": "moegraft.runtime.swap",
    "swapped": "moegraft.runtime.swap",
}

__all__ = ["Host", "Patch", "swapped"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'moegraft.runtime' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
