"""Average a shared tensor of several models, and record how far each has moved from the anchor."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moegraft.bar.entries import produced
from moegraft.checkpoint import StoredPiece, load_tensor
from moegraft.checkpoint.writer import Produced
from moegraft.errors import BranchError

POLICIES = ("mean", "changed", "anchor", "equal", "first", "sum:WEIGHT")
"""`mean`: of all models, the anchor included (the paper). `changed`: of the branches that changed
the tensor, else the anchor's. `anchor`: the anchor's. `equal`: refuse where one differs. `first`:
the first branch's (what the authors' BTX does). `sum:WEIGHT`: the anchor's plus WEIGHT times the
sum of all branches' changes, which the mean divides by the number of models (not in the paper;
task arithmetic, Ilharco et al., arXiv:2212.04089)."""

_CHUNK = 1 << 20


@dataclass
class Shared:
    """The shared tensors of a merge: one at a time, each model's mapped from its file.

    Memory: the average in float32, and the pages that are being read.
    """

    names: Sequence[str]
    """The models, the anchor first."""
    moved: list[dict[str, Any]] = field(default_factory=list)
    """Filled as tensors are written: relative distance from the anchor by tensor and model."""

    def source(
        self, name: str, component: str, pieces: Sequence[StoredPiece], policy: str
    ) -> Produced:
        """What fills the tensor `name`.

        Args:
            name: of the output's tensor, for the report.
            component: of the tensor, for the report.
            pieces: the models' pieces of one shape, in the order of `names`.
            policy: how they become one.
        """
        assert len(pieces) == len(self.names)
        first = pieces[0]
        make = partial(self._merge, name, component, pieces, policy)
        return produced(first.dtype, first.shape, make)

    def _merge(
        self, name: str, component: str, pieces: Sequence[StoredPiece], policy: str
    ) -> Tensor:
        tensors = [load_tensor(piece) for piece in pieces]
        anchor, others = tensors[0], tensors[1:]
        distances = [relative_distance(anchor, other) for other in others]
        moved = dict(zip(self.names[1:], distances, strict=True))
        for model, far in moved.items():
            if math.isnan(far):
                raise BranchError(
                    f"{name}: {model!r} or the anchor holds values that are not finite, which a "
                    "merge would spread"
                )
        self.moved.append({"tensor": name, "component": component, "moved": moved})
        changed = [other for other, far in zip(others, distances, strict=True) if far]
        if policy == "first":
            return others[0]
        if policy == "equal" and changed:
            worst = max(moved, key=lambda model: moved[model])
            raise BranchError(
                f"{name}: {worst!r} differs from the anchor by {moved[worst]:.2g} of its norm; "
                "expected equal tensors, or another policy with --shared"
            )
        if policy in ("anchor", "equal") or not changed:
            return anchor
        weight = sum_weight(policy)
        if weight is not None:
            return anchor_plus(anchor, changed, weight)
        return mean(changed if policy == "changed" else tensors)


def sum_weight(policy: str) -> float | None:
    """The weight of `sum:WEIGHT`; None for the other policies.

    Raises:
        ValueError: there is no such policy, or the weight is no positive number.
    """
    if policy in POLICIES[:-1]:
        return None
    name, _, text = policy.partition(":")
    try:
        weight = float(text) if name == "sum" else math.nan
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        expected = ", ".join(POLICIES)
        raise ValueError(f"unknown policy {policy!r}; expected one of {expected} (as in sum:0.5)")
    return weight


def anchor_plus(anchor: Tensor, changed: Sequence[Tensor], weight: float) -> Tensor:
    """The anchor plus `weight` times the sum of the changes, added up as in `mean`."""
    out = torch.empty_like(anchor)
    flat, start_values = out.view(-1), anchor.reshape(-1)
    wide = torch.float64 if out.dtype == torch.float64 else torch.float32
    views = [tensor.reshape(-1) for tensor in changed]
    for start in range(0, flat.numel(), _CHUNK):
        span = slice(start, start + _CHUNK)
        origin = start_values[span].to(wide)
        total = torch.zeros_like(origin)
        for view in views:
            total = total + (view[span].to(wide) - origin)
        flat[span] = (origin + weight * total).to(out.dtype)
    return out


def mean(tensors: Sequence[Tensor]) -> Tensor:
    """The plain mean, added up in float32 (float64 for F64) chunk by chunk, rounded once."""
    out = torch.empty_like(tensors[0])
    flat = out.view(-1)
    wide = torch.float64 if out.dtype == torch.float64 else torch.float32
    views = [tensor.reshape(-1) for tensor in tensors]
    for start in range(0, flat.numel(), _CHUNK):
        span = slice(start, start + _CHUNK)
        total = views[0][span].to(wide)
        for view in views[1:]:
            total = total + view[span].to(wide)
        flat[span] = (total / len(views)).to(out.dtype)
    return out


def relative_distance(anchor: Tensor, other: Tensor) -> float:
    """Norm of the difference over the anchor's norm; exactly 0 only where all bytes agree."""
    if anchor.dtype == other.dtype and torch.equal(anchor, other):
        return 0.0
    difference = norm = 0.0
    ours, theirs = anchor.reshape(-1), other.reshape(-1)
    for start in range(0, ours.numel(), _CHUNK):
        span = slice(start, start + _CHUNK)
        a, b = ours[span].double(), theirs[span].double()
        difference += float((a - b).square().sum())
        norm += float(a.square().sum())
    return math.sqrt(difference / norm) if norm else math.inf


def by_component(moved: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Largest relative distance by component and model."""
    found: dict[str, dict[str, float]] = {}
    for row in moved:
        own = found.setdefault(row["component"], {})
        for model, far in row["moved"].items():
            own[model] = max(own.get(model, 0.0), far)
    return found
