"""What a search composes: components by groups of layers, as sets of units that a recipe moves."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moegraft.checkpoint import Checkpoint
from moegraft.runtime.trunk import layer_of
from moegraft.sweep.units import QkNorm, units_of
from moegraft.transfer.recipe import NAMED_APART
from moegraft.transfer.scope import Slot, spell

Composition = frozenset[int]
"""Places of the units that come from the donor; empty for the host."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Some components of some layers, which move together."""

    component: str
    """`router`, `attention`, `experts`, `rest`; `embedding` stands for all outside the layers."""
    slots: tuple[Slot, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """Ascending; empty outside the layers."""
        return tuple(sorted({slot.layer for slot in self.slots if slot.layer is not None}))

    def __str__(self) -> str:
        """E.g. `experts 4-7`."""
        return f"{self.component} {spell(self.layers)}".strip()


@dataclass(frozen=True, slots=True)
class Space:
    """The units of a search, and the compositions to begin with."""

    units: tuple[Unit, ...]
    num_layers: int

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        num_groups: int,
        qk_norm: QkNorm = "attention",
        *,
        differing: Container[Slot] | None = None,
    ) -> "Space":
        """All components in contiguous groups of layers of about equal size.

        Args:
            checkpoint: the host.
            num_groups: of layers; at most as many as there are.
            qk_norm: whether q/k norms move with `attention`.
            differing: components by layer that are worth moving; None for all.
        """
        layers = np.array_split(np.arange(checkpoint.num_layers), num_groups)
        group_of = {int(layer): g for g, part in enumerate(layers) for layer in part}
        found: dict[tuple[str, int], list[Slot]] = {}
        for slot in units_of(checkpoint, "components", qk_norm):
            if differing is not None and slot not in differing:
                continue
            name = slot.component if slot.component in NAMED_APART else "rest"
            place = ("embedding", -1) if slot.layer is None else (name, group_of[slot.layer])
            found.setdefault(place, []).append(slot)
        units = tuple(Unit(name, tuple(slots)) for (name, _), slots in found.items())
        return cls(units, checkpoint.num_layers)

    @property
    def everything(self) -> Composition:
        """All units: the donor, but for its last norm."""
        return frozenset(range(len(self.units)))

    def slots(self, composition: Iterable[int]) -> list[Slot]:
        """What a recipe has to move."""
        return [slot for place in sorted(composition) for slot in self.units[place].slots]

    def values(self, by_slot: Mapping[Slot, float]) -> list[float]:
        """Values of slots summed by unit."""
        return [sum(by_slot.get(slot, 0.0) for slot in unit.slots) for unit in self.units]

    def presets(self) -> list[Composition]:
        """The eight of the paper (host included) where the units have their components."""
        found: list[Composition] = [frozenset()]
        for name in NAMED_APART:
            own = self.having(component=name)
            found += [one | own for one in found]
        return list(dict.fromkeys(found))

    def having(self, *, component: str | None = None, layer: int | None = None) -> Composition:
        """The units of a component, or with a layer."""
        return frozenset(
            place
            for place, unit in enumerate(self.units)
            if component in (None, unit.component) and (layer is None or layer in unit.layers)
        )

    def first_layer(self, a: Composition, b: Composition) -> int:
        """The lowest layer in which two compositions differ; see `runtime.trunk`."""
        slots = self.slots(a ^ b)
        found = (layer_of(slot.component, slot.layer, self.num_layers) for slot in slots)
        return min(found, default=self.num_layers)

    def neighbours(self, composition: Composition) -> list[Composition]:
        """One unit flipped; a component taken or given back everywhere; a group of layers too."""
        flips = [composition ^ {place} for place in range(len(self.units))]
        names = dict.fromkeys(unit.component for unit in self.units)
        starts = dict.fromkeys(unit.layers[0] for unit in self.units if unit.layers)
        wholes = [self.having(component=name) for name in names]
        wholes += [self.having(layer=layer) for layer in starts]
        moves = [*flips, *(composition | w for w in wholes), *(composition - w for w in wholes)]
        return [move for move in dict.fromkeys(moves) if move != composition]

    def describe(self, composition: Composition) -> str:
        """E.g. `router 0-3, experts 0-7`: layers of one component together."""
        layers: dict[str, set[int]] = {}
        for place in sorted(composition):
            unit = self.units[place]
            layers.setdefault(unit.component, set()).update(unit.layers)
        parts = [f"{name} {spell(sorted(own))}".strip() for name, own in layers.items()]
        return ", ".join(parts) or "host"


def prefixes(values: Sequence[float], count: int) -> list[Composition]:
    """The best units by falling value, in `count` sizes spread between one and all."""
    order = sorted(range(len(values)), key=lambda place: -values[place])
    sizes = np.unique(np.linspace(1, len(order), min(count, len(order))).round().astype(int))
    return [frozenset(order[:size]) for size in sizes.tolist()]
