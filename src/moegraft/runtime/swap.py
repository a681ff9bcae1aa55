"""Hot swap: exchange parameters of a live model for others, and put the very same ones back.

Re-pointing `module._parameters[name]` neither copies nor allocates a whole tensor.
Nothing here knows about plans, checkpoints or components.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn

from moegraft.errors import IncompatibleError, RecipeError


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """One tensor of a live model, and what stands there instead.

    Patches compare by identity: two equal-looking patches are two patches.
    """

    parameter: str
    """Live name of a parameter or persistent buffer, as in `model.state_dict()`."""
    value: Tensor | Callable[[], Tensor]
    """The new tensor, or a function that makes it when the swap happens (one call per swap).

    Same shape, dtype and device as what it replaces; with `expert`, as one slice of its leading
    axis. It is used, not copied: it must not be written while it is swapped in.
    """
    expert: int | None = None
    """Index on the leading axis of a fused expert tensor; None replaces the whole tensor."""

    def load(self) -> Tensor:
        """The new tensor itself."""
        return self.value if isinstance(self.value, Tensor) else self.value()


class _Slot(NamedTuple):
    """Every place of a model that holds one tensor: several when it is tied."""

    name: str
    tensor: Tensor
    places: tuple[tuple[dict[str, Any], str], ...]


_swapped: WeakSet[nn.Module] = WeakSet()
"""Modules inside a swap context now; nesting is refused by it."""


@contextmanager
def swapped(model: nn.Module, patches: Sequence[Patch]) -> Iterator[nn.Module]:
    """Run a block with `patches` applied to `model`, then restore it exactly.

    A patch of a whole tensor re-points every place that holds it (tied weights have several): no
    copy, no allocation. Patches of single experts cost one new tensor per fused tensor they touch:
    a clone of the model's own with the experts written into the clone. The storage of the model's
    own tensors is never written, and on exit, by an exception too, the same objects stand in the
    same places. `requires_grad` is that of the replaced parameter.

    Args:
        model: any module; its own tensors stay alive beside the new ones.
        patches: at most one per tensor, or per expert of a tensor.

    Yields:
        `model` itself.

    Raises:
        IncompatibleError: no such tensor, or shape, dtype or device differ.
        RecipeError: two patches for one place, or `model` is swapped already.
    """
    with exclusively(model):
        replacements = _replacements(model, patches)
        try:
            for slot, new in replacements:
                _point(slot, new)
            yield model
        finally:
            for slot, _ in replacements:
                _point(slot, slot.tensor)


@contextmanager
def exclusively(model: nn.Module) -> Iterator[None]:
    """Mark `model` and its submodules as swapped; refuse when one of them is already.

    Raises:
        RecipeError: a swap context is open on `model` or on a part of it.
    """
    modules = list(model.modules())
    if not _swapped.isdisjoint(modules):
        raise RecipeError(
            f"{type(model).__name__} is swapped already and swaps do not nest: "
            "leave the first context, or give all patches to one"
        )
    _swapped.update(modules)
    try:
        yield
    finally:
        _swapped.difference_update(modules)


def slots(model: nn.Module) -> dict[str, _Slot]:
    """Every parameter and persistent buffer by live name; tied names share one slot."""
    found: dict[int, tuple[str, Tensor, list[tuple[dict[str, Any], str]]]] = {}
    names: dict[str, int] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                if tensor is None or key in module._non_persistent_buffers_set:
                    continue
                name = f"{prefix}.{key}" if prefix else key
                names[name] = id(tensor)
                places = found.setdefault(id(tensor), (name, tensor, []))[2]
                if not any(table is other and key == held for other, held in places):
                    places.append((table, key))
    made = {at: _Slot(name, tensor, tuple(p)) for at, (name, tensor, p) in found.items()}
    return {name: made[at] for name, at in names.items()}


def by_tensor(model: nn.Module, patches: Sequence[Patch]) -> list[tuple[_Slot, list[Patch]]]:
    """Group `patches` by the tensor they touch, and refuse unknown names and conflicts.

    Raises:
        IncompatibleError: no such tensor.
        RecipeError: two patches for one place.
    """
    known = slots(model)
    grouped: dict[int, tuple[_Slot, list[Patch]]] = {}
    for patch in patches:
        slot = known.get(patch.parameter)
        if slot is None:
            raise IncompatibleError(_unknown(patch.parameter, list(known)))
        group = grouped.setdefault(id(slot.tensor), (slot, []))[1]
        if any(other.value is patch.value and other.expert == patch.expert for other in group):
            continue  # both names of a tied tensor, given the same new tensor
        for other in group:
            if None in (patch.expert, other.expert) or patch.expert == other.expert:
                raise RecipeError(_conflict(patch, other))
        group.append(patch)
    return list(grouped.values())


def replacement(slot: _Slot, patches: Sequence[Patch]) -> Tensor:
    """The tensor that `patches` put into `slot`; the host's own tensor when nothing changes.

    Raises:
        IncompatibleError: shape, dtype or device differ, or the expert is out of range.
    """
    old = slot.tensor
    if patches[0].expert is None:
        (patch,) = patches
        new = patch.load()
        _check(patch, new, old)
        return new if new is old else _as(old, new)
    with torch.no_grad():
        new = old.detach().clone()
        for patch in patches:
            assert patch.expert is not None
            if old.ndim < 2 or not 0 <= patch.expert < old.shape[0]:
                raise IncompatibleError(
                    f"{patch.parameter}: no expert {patch.expert} in a tensor of shape "
                    f"{list(old.shape)}; experts run from 0 on the leading axis of fused tensors"
                )
            value = patch.load()
            _check(patch, value, old[patch.expert])
            new[patch.expert].copy_(value)
    return _as(old, new)


def _replacements(model: nn.Module, patches: Sequence[Patch]) -> list[tuple[_Slot, Tensor]]:
    grouped = by_tensor(model, patches)
    made = [(slot, replacement(slot, group)) for slot, group in grouped]
    return [(slot, new) for slot, new in made if new is not slot.tensor]


def _point(slot: _Slot, tensor: Tensor) -> None:
    for table, key in slot.places:
        table[key] = tensor


def _as(old: Tensor, new: Tensor) -> Tensor:
    """`new` in the role of `old`: a parameter with its `requires_grad`, or a plain buffer."""
    if not isinstance(old, nn.Parameter):
        return new.detach()
    if isinstance(new, nn.Parameter) and new.requires_grad == old.requires_grad:
        return new
    return nn.Parameter(new.detach(), requires_grad=old.requires_grad)


def _check(patch: Patch, new: Tensor, old: Tensor) -> None:
    where = patch.parameter if patch.expert is None else f"{patch.parameter}[{patch.expert}]"
    for what in ("shape", "dtype", "device"):
        got, expected = getattr(new, what), getattr(old, what)
        if got != expected:
            got, expected = (list(x) if what == "shape" else x for x in (got, expected))
            raise IncompatibleError(
                f"{where}: the new tensor has {what} {got}, the model's has {expected}; "
                "host and donor must have one architecture, dtype and device"
            )


def _unknown(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.3)
    hint = f"; the nearest is {near[0]!r}" if near else ""
    return f"the model has no parameter {name!r}{hint} (live names, as in model.state_dict())"


def _conflict(patch: Patch, other: Patch) -> str:
    spots = sorted(
        p.parameter if p.expert is None else f"{p.parameter}[{p.expert}]" for p in (patch, other)
    )
    tied = "" if patch.parameter == other.parameter else " (tied: one tensor under two names)"
    return f"two patches for one place: {' and '.join(spots)}{tied}; keep one of them"
