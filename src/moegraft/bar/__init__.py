"""Train domains apart as branches of one anchor, merge them as one MoE, train its router."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "AdaptRecipe": "moegraft.bar.stages",
    "StageRecipe": "moegraft.bar.stages",
    "plan_adapt": "moegraft.bar.adapt",
    "verify_branch": "moegraft.bar.verify",
    "BranchRecipe": "moegraft.bar.branch",
    "Manifest": "moegraft.bar.manifest",
    "plan_append": "moegraft.bar.append",
    "plan_branch": "moegraft.bar.branch",
    "train_routers": "moegraft.bar.route",
    "write_append": "moegraft.bar.append",
    "write_branch": "moegraft.bar.branch",
    "HealRecipe": "moegraft.bar.heal",
    "MergeRecipe": "moegraft.bar.merge_recipe",
    "MergeRecord": "moegraft.bar.record",
    "RouteRecipe": "moegraft.bar.route",
    "count_costs": "moegraft.bar.ledger",
    "heal_model": "moegraft.bar.heal",
    "open_branch": "moegraft.bar.branches",
    "plan_merge": "moegraft.bar.merge",
    "plan_revision": "moegraft.bar.upgrade",
    "read_manifest": "moegraft.bar.manifest",
    "write_merge": "moegraft.bar.merge",
    "write_manifest": "moegraft.bar.manifest",
}

__all__ = [*_EXPORTS]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that reading manifests never imports torch (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'moegraft.bar' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
