"""Which pieces of a checkpoint a selection covers: components x layers x experts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from moegraft.checkpoint import Checkpoint
from moegraft.errors import RecipeError
from moegraft.families import Key
from moegraft.transfer.recipe import (
    GROUPS,
    Selection,
    TransferRecipe,
    group_members,
    read_indices,
)


class Slot(NamedTuple):
    """The finest thing a selection can name; every role in it (weight, bias, scales) moves."""

    component: str
    layer: int | None
    expert: int | None

    def __str__(self) -> str:
        """E.g. `experts[3] of layer 7`."""
        expert = "" if self.expert is None else f"[{self.expert}]"
        layer = "" if self.layer is None else f" of layer {self.layer}"
        return f"{self.component}{expert}{layer}"


@dataclass(frozen=True, slots=True)
class Scope:
    """A selection with its words and open ranges resolved for one host."""

    components: frozenset[str]
    layers: frozenset[int] | None
    """None for all layers, and for tensors outside the layers too."""
    experts: frozenset[int] | None
    """Limits the component `experts` only; None for all."""

    def covers(self, slot: Slot) -> bool:
        """Whether the selection moves `slot`."""
        if slot.component not in self.components:
            return False
        if self.layers is not None and slot.layer not in self.layers:
            return False
        limited = slot.component == "experts" and self.experts is not None
        return not limited or slot.expert is None or slot.expert in (self.experts or ())


def slot_of(key: Key) -> Slot:
    """The slot that the piece `key` belongs to."""
    return Slot(key.component, key.layer, key.expert)


def slots_of(checkpoint: Checkpoint) -> dict[Slot, None]:
    """Every slot of `checkpoint`, each once, in the order of the pieces."""
    return dict.fromkeys(Slot(*key[:3]) for key in checkpoint.pieces())


def resolve(
    recipe: TransferRecipe, selection: Selection, host: Checkpoint, slots: Mapping[Slot, None]
) -> tuple[Scope, list[Slot]]:
    """What `selection` means on `host`: its scope, and which of the host's `slots` are in it.

    Raises:
        RecipeError: a component, layer or expert that the host lacks, `lm_head` while it is tied
            to the embedding, or experts that the host stores as one undivided tensor.
    """
    layers = experts = None
    if selection.layers is not None:
        layers = frozenset(read_indices(str(selection.layers), "layers", host.num_layers))
    components: set[str] = set()
    for choice in selection.choices():
        components |= _members(choice.name, recipe, host)
        if choice.experts is not None:
            if not host.family.is_moe:
                raise RecipeError(f"experts {choice.experts}: {host.source} has no experts")
            experts = frozenset(read_indices(choice.experts, "experts", host.num_experts))
    scope = Scope(frozenset(components), layers, experts)
    covered = [s for s in slots if s.component in components and scope.covers(s)]
    found = {slot.component for slot in covered}
    for choice in selection.choices():
        members = _members(choice.name, recipe, host)
        if members.isdisjoint(found):
            raise RecipeError(_no_match(choice.name, members, selection, host, slots))
    _check_divisible(scope, covered, host)
    return scope, covered


def _members(name: str, recipe: TransferRecipe, host: Checkpoint) -> set[str]:
    if name == "lm_head" and host.tied_embeddings:
        raise RecipeError(
            "lm_head: the host ties it to the embedding, so it cannot move alone; "
            "select 'embedding', which moves both"
        )
    found = set(group_members(name, recipe.qk_norm)) if name in GROUPS else {name}
    if "attention" in found and recipe.qk_norm == "attention":
        found.add("qk_norm")
    if "embedding" in found and host.tied_embeddings:
        found.add("lm_head")
    return found


def _no_match(
    name: str,
    members: set[str],
    selection: Selection,
    host: Checkpoint,
    slots: Mapping[Slot, None],
) -> str:
    mine = [slot for slot in slots if slot.component in members]
    if not mine:
        has = ", ".join(dict.fromkeys(slot.component for slot in slots))
        return f"components: {host.source} has no tensor of {name!r}; it has: {has}"
    layers = sorted({slot.layer for slot in mine if slot.layer is not None})
    where = f"it is in layers {spell(layers)}" if layers else "it is outside the layers"
    return f"layers {selection.layers}: {host.source} has no {name!r} there; {where}"


def _check_divisible(scope: Scope, covered: Iterable[Slot], host: Checkpoint) -> None:
    if scope.experts is None:
        return
    whole = {slot for slot in covered if slot.component == "experts" and slot.expert is None}
    if whole:
        key, stored = next((k, s) for k, s in host.pieces().items() if slot_of(k) in whole)
        raise RecipeError(
            f"experts: single experts of layer {key.layer} cannot move, because "
            f"{stored.tensor.name!r} serves all of them; select all experts"
        )


def spell(indices: Iterable[int]) -> str:
    """Ascending indices as `0-7,12`."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
