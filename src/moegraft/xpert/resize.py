"""The FFNs of a target from knowledge: which layer, which groups, which rows, at which scale."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moegraft.config import STRICT
from moegraft.errors import IncompatibleError, RecipeError
from moegraft.xpert.decompose import Factored
from moegraft.xpert.experts import MATRICES
from moegraft.xpert.knowledge import Knowledge
from moegraft.xpert.leverage import (
    axis_scores,
    choose,
    evenly,
    hidden_scores,
    neuron_scores,
    norm_scores,
    shares,
)

CHOICES = {
    "depth": ("first", "uniform", "repeat"),
    "grow": ("duplicate", "concat"),
    "select": ("leverage", "even"),
    "scale": ("none", "fan_in", "match_std"),
    "outputs": ("mean", "sum"),
}


@dataclass(frozen=True, slots=True)
class Resizing:
    """How knowledge of one size fills FFNs of another. Defaults are the method's."""

    __pydantic_config__: ClassVar[Any] = STRICT

    depth: str = "first"
    """Target layer i starts from layer i (`first`); from floor((i + .5) L / L') of L, spread over
    the whole depth (`uniform`); or from i mod L (`repeat`)."""
    grow: str = "duplicate"
    """Where an FFN is wider than the knowledge: `duplicate` its best neurons and divide their
    outputs, which preserves the function; or put several groups side by side (`concat`)."""
    select: str = "leverage"
    """Which rows a narrower target keeps: those of most leverage, or evenly spaced ones."""
    couple: bool = True
    """Gate, up and down share neurons and all layers share residual dimensions. Without, each
    matrix selects for itself (the literal analogue of the predecessor's rule), which tears the
    three weights of a neuron apart; copies are then not divided."""
    scale: str = "none"
    """`fan_in`: multiply by the root of old over new inputs where an axis shrank. `match_std`:
    give matrices the root mean square of the experts' entries, which averaging has lowered."""
    outputs: str = "mean"
    """What the outputs of experts or groups side by side make: their mean or their sum."""

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise RecipeError(
                    f"--{name} {getattr(self, name)}: expected one of {', '.join(known)}"
                )


def map_layers(depth: str, num_known: int, num_wanted: int) -> list[int]:
    """The place among the known layers for each of the target's.

    Raises:
        RecipeError: `first`, and the target is deeper.
    """
    if depth == "first" and num_wanted > num_known:
        raise RecipeError(
            f"--depth first: the target has {num_wanted} layers and the knowledge {num_known}; "
            "use uniform or repeat"
        )
    if depth == "uniform":
        return evenly(num_known, num_wanted).tolist()
    return [layer % num_known for layer in range(num_wanted)]


@dataclass(frozen=True)
class Ffns:
    """The FFNs of a target of `hidden` width and `num_layers`, made from knowledge one by one."""

    knowledge: Knowledge
    how: Resizing
    hidden: int
    num_layers: int
    shared: Int[Tensor, " hidden"] | None = None
    """Residual dimensions that were chosen elsewhere, so that several targets share them."""
    fitted: dict[int, Float[Tensor, "hidden ffn"]] = field(default_factory=dict, repr=False)
    """Down projections by layer of the target that replace the adapted ones."""
    _memo: dict[tuple[int, int], dict[str, Factored]] = field(default_factory=dict, repr=False)
    _made: dict[tuple[int, int, int], dict[str, Tensor]] = field(default_factory=dict, repr=False)

    @cached_property
    def layers(self) -> list[int]:
        """The donor's layer behind each layer of the target."""
        known = self.knowledge.layers
        return [known[place] for place in map_layers(self.how.depth, len(known), self.num_layers)]

    @cached_property
    def residual(self) -> Int[Tensor, " hidden"]:
        """The donor's residual dimension behind each of the target's, the same in all layers."""
        size = self._known(self.knowledge.layers[0], 0)["gate"].shape[1]
        if self.shared is not None:
            return self.shared
        if self.hidden == size:
            return torch.arange(size)
        if self.how.select == "even":
            return evenly(size, self.hidden)
        known = (self._known(layer, 0) for layer in self.knowledge.layers)
        return choose(hidden_scores(known), self.hidden)

    def neurons(self, layer: int, unit: int, width: int) -> Int[Tensor, " ffn"]:
        """The neuron behind each of an FFN's, counted through its groups.

        Args:
            layer: of the target.
            unit: number of the expert, 0 for a dense FFN.
            width: of the FFN.
        """
        groups = [self._known(self.layers[layer], group) for group in self._groups(unit, width)]
        size = sum(group["gate"].shape[0] for group in groups)
        if width == size:
            return torch.arange(size)
        if self.how.select == "even":
            return evenly(size, width)
        return choose(torch.cat([neuron_scores(group) for group in groups]), width)

    def matrices(self, layer: int, unit: int, width: int) -> dict[str, Float[Tensor, "_ _"]]:
        """Gate [width, hidden], up [width, hidden] and down [hidden, width], in float32.

        Raises:
            IncompatibleError: the FFN is wider than all groups side by side, under `concat`.
            CheckpointError: the knowledge is damaged.
        """
        what = (layer, unit, width)
        if what not in self._made:
            self._made.clear()
            self._made[what] = self._make(layer, unit, width)
        if layer in self.fitted:
            return {**self._made[what], "down": self.fitted[layer]}
        return self._made[what]

    def _make(self, layer: int, unit: int, width: int) -> dict[str, Tensor]:
        numbers = self._groups(unit, width)
        groups = [self._known(self.layers[layer], number) for number in numbers]
        if not self.how.couple:
            return self._apart(groups, width)
        index, residual = self.neurons(layer, unit, width), self.residual
        size = groups[0]["gate"].shape[0]
        made = {name: torch.zeros(_shape(name, width, self.hidden)) for name in MATRICES}
        for number, group in enumerate(groups):
            places = (index // size == number).nonzero().flatten()
            own = index[places] % size
            made["gate"][places] = self._scaled(group["gate"], own, residual)
            made["up"][places] = self._scaled(group["up"], own, residual)
            made["down"][:, places] = self._scaled(group["down"], residual, own)
        made["gate"] *= shares(residual)
        made["up"] *= shares(residual)
        made["down"] *= shares(index)
        if self.how.outputs == "mean":
            made["down"] /= len(groups) * self._num_side_by_side
        return self._fan_in(made, groups)

    @property
    def _num_side_by_side(self) -> int:
        """Experts whose outputs one group of knowledge adds up."""
        about = self.knowledge.about
        if about["decomposition"]["method"] != "concat":
            return 1
        return len(about["layers"][0]["groups"][0]["experts"])

    def _groups(self, unit: int, width: int) -> list[int]:
        """Experts take the groups in turn; FFNs wider than one take several."""
        num_groups = self.knowledge.num_groups
        size = self._known(self.knowledge.layers[0], 0)["gate"].shape[0]
        num = -(-width // size) if self.how.grow == "concat" else 1
        if num > num_groups:
            raise IncompatibleError(
                f"--grow concat: an FFN of {width} neurons needs {num} groups of {size}, and the "
                f"knowledge has {num_groups}; decompose with --groups {num}, or --grow duplicate"
            )
        return [(unit * num + place) % num_groups for place in range(num)]

    def _known(self, layer: int, group: int) -> dict[str, Factored]:
        """One group of knowledge; those of the last layer are kept."""
        if (layer, group) not in self._memo:
            if any(other != layer for other, _ in self._memo):
                self._memo.clear()
            self._memo[layer, group] = self.knowledge.layer(layer, group)
        return self._memo[layer, group]

    def _apart(self, groups: Sequence[Mapping[str, Factored]], width: int) -> dict[str, Tensor]:
        if len(groups) > 1:
            raise RecipeError("--uncoupled: has no --grow concat; expected --grow duplicate")
        found, made = groups[0], {}
        for name in MATRICES:
            sizes = _shape(name, width, self.hidden)
            index = [self._own_index(found[name], axis, size) for axis, size in enumerate(sizes)]
            made[name] = self._scaled(found[name], *index)
        return self._fan_in(made, groups)

    def _own_index(self, found: Factored, axis: int, num: int) -> Int[Tensor, " num"]:
        size = found.shape[axis]
        if num == size:
            return torch.arange(size)
        if self.how.select == "even":
            return evenly(size, num)
        scores = axis_scores(found, axis)
        return choose(norm_scores(found, axis) if scores is None else scores, num)

    def _scaled(
        self, found: Factored, rows: Int[Tensor, " rows"], columns: Int[Tensor, " columns"]
    ) -> Float[Tensor, "rows columns"]:
        picked = pick(found, rows, columns)
        ratio = found.diagnostics["norm_ratio"]
        if self.how.scale != "match_std" or not ratio:
            return picked
        return picked * (math.sqrt(self._num_side_by_side) / ratio)

    def _fan_in(
        self, made: dict[str, Tensor], groups: Sequence[Mapping[str, Factored]]
    ) -> dict[str, Tensor]:
        if self.how.scale != "fan_in":
            return made
        old = {name: groups[0][name].shape[1] for name in MATRICES}
        old["down"] *= len(groups)
        return {
            name: matrix * math.sqrt(max(1.0, old[name] / matrix.shape[1]))
            for name, matrix in made.items()
        }

    def about(self) -> dict[str, Any]:
        """What is worth recording: layers, and residual dimensions where not all are kept."""
        index = self.residual
        whole = torch.equal(index, torch.arange(len(index)))
        return {"layers": self.layers, "residual": None if whole else index.tolist()}


def pick(
    found: Factored, rows: Int[Tensor, " rows"], columns: Int[Tensor, " columns"]
) -> Float[Tensor, "rows columns"]:
    """Rows and columns of the matrix, in float32: rows of its factors are selected."""
    if found.rows is None or found.columns is None:
        return found.core.float()[rows][:, columns]
    return found.rows.float()[rows] @ found.core.float() @ found.columns.float()[columns].T


def _shape(name: str, width: int, hidden: int) -> tuple[int, int]:
    return (hidden, width) if name == "down" else (width, hidden)
