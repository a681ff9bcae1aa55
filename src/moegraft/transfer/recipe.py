"""What to move: one host, named donors, and selections of components x layers x experts."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal, NamedTuple

from moegraft.config import STRICT
from moegraft.errors import RecipeError
from moegraft.families import COMPONENTS

HOST = "host"
"""The name of the host among the sources of a plan; no donor may bear it."""

NAMED_APART = ("router", "attention", "experts")
"""The components of the paper's design; the group `rest` is everything else."""

GROUPS = ("rest", "all")
"""Words that stand for several components: those of them that the checkpoint has."""

MOVABLE = tuple(name for name in COMPONENTS if name != "extra")
"""`extra` (multi-token prediction layers and the like) always stays the host's."""

_COMPONENT = re.compile(r"(?P<name>[a-z_]+)(?:\[(?P<experts>[^\]]*)\])?")
_INDEX = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+))?|(?P<start>\d*):(?P<stop>\d*)")


class ComponentChoice(NamedTuple):
    """One component of a selection, with the expert indices that were asked for."""

    name: str
    experts: str | None


@dataclass(frozen=True, slots=True)
class Selection:
    """Some components, in some layers, for some experts, from one donor.

    Raises:
        RecipeError: a component that does not exist, indices that cannot be read, experts without
            the component `experts`, or a weight where it has no effect.
    """

    __pydantic_config__ = STRICT

    components: tuple[str, ...]
    """Component names; `experts[0-7,12]` names single experts; `rest` and `all` are groups."""
    donor: str | None = None
    """Name of the donor; may be left out when the recipe has exactly one."""
    layers: str | int | None = None
    """Indices such as `8:16` (half open), `0,3,5` or `4-7` (inclusive); all layers when absent."""
    experts: str | int | None = None
    """Expert indices for the component `experts`, the same as in brackets."""
    rule: Literal["take", "linear", "slerp"] = "take"
    """`take` copies the donor's bytes; the others mix host and donor piece by piece."""
    weight: float | int | None = None
    """Share of the donor under `linear` and `slerp`: 0 is the host, 1 the donor."""

    def __post_init__(self) -> None:
        if not self.components:
            raise RecipeError("components: expected at least one component, got none")
        for what, value in (("layers", self.layers), ("experts", self.experts)):
            if isinstance(value, int):
                raise RecipeError(
                    f'{what}: put the indices in quotes, as in "8:16" (YAML reads 8:16 without '
                    f"quotes as a number), got the number {value}"
                )
            if value is not None:
                read_indices(value, what)
        chosen = self.choices()
        if self.experts is not None and not any(c.name == "experts" for c in chosen):
            raise RecipeError(
                f"experts {self.experts!r}: expected the component 'experts' in the same "
                f"selection, got components {list(self.components)}"
            )
        self._check_weight()

    def _check_weight(self) -> None:
        if self.rule == "take" and self.weight is not None:
            raise RecipeError(
                f"weight {self.weight:g}: has no effect under rule 'take'; "
                "choose rule 'linear' or 'slerp', or leave the weight out"
            )
        if self.rule != "take" and self.weight is None:
            raise RecipeError(f"rule {self.rule!r}: expected a weight between 0 and 1, got none")
        if self.weight is not None and not 0 <= self.weight <= 1:
            raise RecipeError(f"weight: expected a number from 0 to 1, got {self.weight:g}")
        if self.weight is not None:
            object.__setattr__(self, "weight", float(self.weight))

    def choices(self) -> tuple[ComponentChoice, ...]:
        """The components with their expert indices; groups stay words."""
        return tuple(self._choices())

    def _choices(self) -> Iterator[ComponentChoice]:
        seen = set()
        for text in self.components:
            match = _COMPONENT.fullmatch(text.strip())
            name = match["name"] if match else text
            if not match or name not in (*MOVABLE, *GROUPS):
                raise RecipeError(_unknown_component(name))
            if name in seen:
                raise RecipeError(f"components: {name!r} is named twice in one selection")
            seen.add(name)
            experts = match["experts"]
            if experts is not None:
                if name != "experts":
                    raise RecipeError(f"components: only 'experts' takes indices, got {text!r}")
                if self.experts is not None:
                    raise RecipeError(f"experts: given twice, in {text!r} and as {self.experts!r}")
                read_indices(experts, "experts")
            elif name == "experts" and self.experts is not None:
                experts = str(self.experts)
            yield ComponentChoice(name, experts)

    def __str__(self) -> str:
        """E.g. `experts[0-7], router in layers 8:16, slerp 0.5`."""
        parts = [c.name + (f"[{c.experts}]" if c.experts else "") for c in self.choices()]
        layers = "" if self.layers is None else f" in layers {self.layers}"
        rule = "" if self.weight is None else f", {self.rule} {self.weight:g}"
        return ", ".join(parts) + layers + rule


@dataclass(frozen=True, slots=True)
class TransferRecipe:
    """One host, any number of donors, and what moves from them into the host.

    Raises:
        RecipeError: a selection names no or an unknown donor, a donor is never used, or `qk_norm`
            is selected while it moves with `attention`.
    """

    __pydantic_config__ = STRICT

    host: str
    """Folder, `org/name[@revision]` or `nano:NAME`."""
    donors: Mapping[str, str] = field(default_factory=dict)
    """Donor sources by the name that selections use."""
    selections: tuple[Selection, ...] = ()
    qk_norm: Literal["attention", "own"] = "attention"
    """Whether the q/k norms move with `attention`, which they were trained with, or alone."""
    cast: bool = False
    """Convert donor tensors of another dtype to the host's; the result is not byte-exact."""
    unknown: Literal["error", "host"] = "error"
    """What to do with tensors that fit no pattern: stop, or keep the host's and list them."""
    map: str | None = None
    """YAML file that describes a family that is not in the catalogue."""
    licence: str | None = None
    """Licence of the result; needed where the sources' licences differ."""

    def __post_init__(self) -> None:
        if HOST in self.donors:
            raise RecipeError(f"donors: {HOST!r} names the host; give the donor another name")
        used = set()
        for number, selection in enumerate(self.selections, 1):
            used.add(self._donor(selection, f"selections.{number}"))
            names = [choice.name for choice in selection.choices()]
            if self.qk_norm == "attention" and "qk_norm" in names and "attention" not in names:
                raise RecipeError(
                    f"selections.{number}: qk_norm moves with attention; "
                    "set 'qk_norm: own' to move it alone"
                )
        idle = sorted(set(self.donors) - used)
        if idle and self.selections:
            raise RecipeError(f"donors: {idle[0]!r} gives nothing; select from it or remove it")

    def _donor(self, selection: Selection, where: str) -> str:
        if selection.donor is None and len(self.donors) == 1:
            return next(iter(self.donors))
        known = ", ".join(self.donors) or "none"
        if selection.donor is None:
            raise RecipeError(f"{where}: expected a donor, got none; the recipe names: {known}")
        if selection.donor not in self.donors:
            raise RecipeError(f"{where}: no donor {selection.donor!r}; the recipe names: {known}")
        return selection.donor

    def donor_of(self, selection: Selection) -> str:
        """Name of the donor that `selection` takes from."""
        return self._donor(selection, "selection")


def component_recipe(
    host: str, donor: str, configuration: str, *, qk_norm: Literal["attention", "own"] = "attention"
) -> TransferRecipe:
    """The recipe of a configuration such as `router+experts`, from a donor named `donor`.

    `host` (or the empty string) moves nothing, `donor` moves all components, and `rest` is every
    component other than router, attention and experts.

    Raises:
        RecipeError: a component that does not exist.
    """
    if configuration in ("", HOST):
        return TransferRecipe(host, {"donor": donor}, (), qk_norm)
    names = ("all",) if configuration == "donor" else tuple(configuration.split("+"))
    return TransferRecipe(host, {"donor": donor}, (Selection(names),), qk_norm)


def group_members(group: str, qk_norm: str) -> tuple[str, ...]:
    """The components that the word `all` or `rest` may stand for."""
    assert group in GROUPS, group
    if group == "all":
        return MOVABLE
    apart = (*NAMED_APART, "qk_norm") if qk_norm == "attention" else NAMED_APART
    return tuple(name for name in MOVABLE if name not in apart)


def read_indices(text: str, what: str, size: int | None = None) -> tuple[int, ...]:
    """Sorted indices of `0,3,5`, `4-7` (inclusive) and `8:16` (half open), joined by commas.

    With `size`, open ends (`8:`) are filled and indices beyond it are errors; without, the text is
    only checked and open ends count as empty.

    Raises:
        RecipeError: the text cannot be read, a range is empty, an index repeats or is out of range.
    """
    found: list[int] = []
    for part in str(text).split(","):
        match = _INDEX.fullmatch(part.strip())
        if not match:
            raise RecipeError(
                f"{what}: cannot read {part.strip()!r} in {str(text)!r}; "
                "expected indices such as 0,3,5 or 8:16 or 4-7"
            )
        found += _range(match, size)
    beyond = [index for index in found if size is not None and index >= size]
    if beyond:
        raise RecipeError(f"{what} {text}: {beyond[0]} is out of range, expected 0 to {size - 1}")  # pyright: ignore[reportOptionalOperand]
    if len(set(found)) < len(found):
        raise RecipeError(f"{what} {text}: an index is named twice")
    return tuple(sorted(found))


def _range(match: re.Match[str], size: int | None) -> range:
    if match["first"] is not None:
        first = int(match["first"])
        last = int(match["last"] or first)
        bounds = range(first, last + 1)
    else:
        start = int(match["start"] or 0)
        open_end = match["stop"] == ""
        stop = (start + 1 if size is None else size) if open_end else int(match["stop"])
        bounds = range(start, stop)
    if size is not None and max(bounds.start + 1, bounds.stop) > size:
        return range(bounds.start, max(bounds.start, size) + 1)  # out of range, but no huge list
    if not bounds:
        raise RecipeError(f"range {match[0]!r} is empty; expected a start below its end")
    return bounds if size is not None else range(bounds.start, bounds.start + 1)


def _unknown_component(name: str) -> str:
    near = get_close_matches(name, (*MOVABLE, *GROUPS), n=1)
    if name == "extra":
        return "components: 'extra' tensors always stay the host's and cannot be selected"
    hint = f"did you mean {near[0]!r}? " if near else ""
    known = ", ".join((*MOVABLE, *GROUPS))
    return f"components: unknown component {name!r}; {hint}expected one of: {known}"
