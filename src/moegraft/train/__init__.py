"""Training: language modelling on texts, thin wrappers on TRL, and rewards that check answers."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Freeze": "moegraft.train.freeze",
    "Trainable": "moegraft.train.freeze",
    "TrainOptions": "moegraft.train.options",
    "train_sft": "moegraft.train.sft",
    "train_dpo": "moegraft.train.dpo",
    "train_grpo": "moegraft.train.grpo",
    "demonstration": "moegraft.train.data",
    "preference": "moegraft.train.data",
    "task": "moegraft.train.data",
    "verify": "moegraft.train.verifiers",
    "train_lm": "moegraft.train.lm",
    "validation_loss": "moegraft.train.lm",
    "RouterLoss": "moegraft.train.router_loss",
    "router_losses": "moegraft.train.router_loss",
    "Blocks": "moegraft.train.text",
    "pack": "moegraft.train.text",
    "read_documents": "moegraft.train.text",
    "read_chats": "moegraft.train.chats",
    "pack_chats": "moegraft.train.chats",
    "GrpoOptions": "moegraft.train.grpo_options",
    "read_metrics": "moegraft.train.loop",
}

__all__ = [*_EXPORTS]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import public names on first use (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'moegraft.train' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
