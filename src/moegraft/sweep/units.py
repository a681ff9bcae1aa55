"""What an attribution is about: single experts, or components by layer, as recipes name them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from moegraft.checkpoint import Checkpoint
from moegraft.errors import RecipeError
from moegraft.families import COMPONENTS
from moegraft.sweep.design import DONOR
from moegraft.transfer.recipe import Selection, TransferRecipe
from moegraft.transfer.scope import Slot, slots_of, spell

Grain = Literal["experts", "components"]
"""`experts`: each expert of each layer; `components`: each component of each layer."""

QkNorm = Literal["attention", "own"]


def units_of(checkpoint: Checkpoint, grain: Grain, qk_norm: QkNorm = "attention") -> list[Slot]:
    """Every unit of a checkpoint that a recipe can move alone, by component, layer and expert.

    A unit without an expert index stands for the whole component of its layer. The norm after the
    last layer is none: a recipe that names it moves all norms.

    Raises:
        RecipeError: single experts are asked for, and there are none that can move alone.
    """
    slots = [slot for slot in slots_of(checkpoint) if slot.component != "extra"]
    if grain == "experts":
        units = [s for s in slots if s.component == "experts" and s.expert is not None]
        if not units:
            raise RecipeError(
                f"units experts: {checkpoint.source} has no experts that can move alone; "
                "choose units components"
            )
        return sorted(units, key=_order)
    in_layers = {slot.component for slot in slots if slot.layer is not None}
    folded = {_owner(slot, checkpoint, qk_norm)._replace(expert=None) for slot in slots}
    units = [u for u in folded if u.layer is not None or u.component not in in_layers]
    return sorted(units, key=_order)


def fold(
    values: Mapping[Slot, float],
    units: Sequence[Slot],
    checkpoint: Checkpoint,
    qk_norm: QkNorm = "attention",
) -> dict[Slot, float]:
    """Sum values of the finest slots by unit, in the order of `units`; the rest is left out."""
    sums = dict.fromkeys(units, 0.0)
    for slot, value in values.items():
        owner = _owner(slot, checkpoint, qk_norm)
        for unit in (owner, owner._replace(expert=None)):
            if unit in sums:
                sums[unit] += value
                break
    return sums


def recipe_of(
    host: str, donor: str, units: Sequence[Slot], qk_norm: QkNorm = "attention"
) -> TransferRecipe:
    """The transfer that moves `units`, and nothing else, from `donor` into `host`.

    Experts that move in the same layers share a selection, and so do whole components.
    """
    experts: dict[int | None, set[int]] = defaultdict(set)
    wholes: dict[str, set[int | None]] = defaultdict(set)
    for unit in units:
        if unit.expert is None:
            wholes[unit.component].add(unit.layer)
        else:
            experts[unit.layer].add(unit.expert)
    where: dict[str, set[int | None]] = defaultdict(set)
    for layer, indices in experts.items():
        where[f"experts[{spell(sorted(indices))}]"].add(layer)
    together: dict[frozenset[int | None], list[str]] = defaultdict(list)
    for component, layers in wholes.items():
        together[frozenset(layers)].append(component)
    groups = [((name,), layers) for name, layers in where.items()]
    groups += [(tuple(names), set(layers)) for layers, names in together.items()]
    selections = [Selection(names, layers=_layers(layers)) for names, layers in groups]
    return TransferRecipe(host, {DONOR: donor}, tuple(selections), qk_norm)


def _layers(layers: Iterable[int | None]) -> str | None:
    numbered = sorted(layer for layer in layers if layer is not None)
    return spell(numbered) if numbered else None


def _owner(slot: Slot, checkpoint: Checkpoint, qk_norm: QkNorm) -> Slot:
    """The slot whose selection moves `slot` along."""
    if slot.component == "qk_norm" and qk_norm == "attention":
        return slot._replace(component="attention")
    if slot.component == "lm_head" and checkpoint.tied_embeddings:
        return slot._replace(component="embedding")
    return slot


def _order(unit: Slot) -> tuple[int, int, int]:
    layer, expert = (-1 if i is None else i for i in unit[1:])
    return COMPONENTS.index(unit.component), layer, expert
