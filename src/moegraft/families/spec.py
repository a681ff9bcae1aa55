"""Tensor names to components and back: one canonical key for published, fused and live names.

A model family writes the same numbers under different names: one tensor per expert on disk
("published"), one 3-D tensor per layer in the live transformers module ("fused"). A `Piece` is
the smallest unit that either layout can address; its `Key` is the same in both, so a plan over
keys can read any layout and write any other.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from moegraft.errors import CheckpointError, FamilyError
from moegraft.families.names import COMPONENTS, Matcher, Place, Rule

__all__ = ["COMPONENTS", "Family", "Key", "Piece", "Place", "Rule"]


class Key(NamedTuple):
    """The canonical address of a piece, independent of the layout it is stored in."""

    component: str
    layer: int | None
    expert: int | None
    role: str

    def __str__(self) -> str:
        """E.g. `experts[3] of layer 7: gate.weight`."""
        expert = "" if self.expert is None else f"[{self.expert}]"
        layer = "" if self.layer is None else f" of layer {self.layer}"
        return f"{self.component}{expert}{layer}: {self.role}"


class Piece(NamedTuple):
    """A contiguous run of bytes inside one stored tensor."""

    key: Key
    shape: tuple[int, ...]
    offset: int
    """First byte, counted from the start of the tensor's data."""
    nbytes: int


_NUM_EXPERTS_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Family:
    """A model architecture, as data: naming rules and where its config keeps the sizes."""

    name: str
    """`model_type` of config.json."""
    rules: tuple[Rule, ...]
    roots: tuple[str, ...] = ("model.",)
    """Alternatives for `{root}`; the first one is the live module's."""
    architectures: tuple[str, ...] = ()
    """Class names in config.json's `architectures` that this family covers."""
    text_config: str | None = None
    """Key of config.json under which the language model's sizes stand, for multimodal wrappers."""
    num_layers_key: str = "num_hidden_layers"
    num_experts_key: str | None = None
    """None for a dense family."""
    top_k_key: str | None = "num_experts_per_tok"
    ffn_key: str = "intermediate_size"
    """Width of one expert (or of the dense FFN)."""
    router_module: str | None = None
    """Live module name template of the router, e.g. `model.layers.{layer}.mlp.gate`."""
    experts_module: str | None = None
    """Live module name template of the fused experts, e.g. `model.layers.{layer}.mlp.experts`."""
    extra_layers_key: str | None = None
    """Where config.json counts the multi-token-prediction layers that follow the last decoder
    layer under the same names; they are `extra` once the family is bound with `for_config`."""
    branching_cache: bool = True
    """The KV cache can branch, so scoring may share prefixes (false for state-space hybrids)."""
    aliases: tuple[str, ...] = ()
    """Other `model_type` values with the same naming (text-only or wrapper configs)."""
    note: str = ""
    """One line for the README's table."""
    extra_layers: tuple[int, int] = (0, 0)
    """First and one past the last layer index that is `extra`; set by `for_config`."""
    _memo: dict[str, Place] = field(default_factory=dict, init=False, compare=False, repr=False)
    _pieces_memo: dict[tuple[str, tuple[int, ...], int], tuple[Piece, ...]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @property
    def is_moe(self) -> bool:
        """Whether the family has routed experts."""
        return self.num_experts_key is not None

    @cached_property
    def _matcher(self) -> Matcher:
        return Matcher(self.rules, self.roots)

    def place(self, name: str) -> Place:
        """The place of tensor `name` (published, fused or live).

        Raises:
            FamilyError: no pattern, or more than one component, fits; the message names the
                closest known template and the way out.
        """
        found = self._memo.get(name)
        if found is None:
            found = self._memo[name] = self._find(name)
        return found

    def for_config(self, config: Mapping[str, Any]) -> "Family":
        """This family as one checkpoint uses it: layers after its last one become `extra`.

        Only families with multi-token-prediction layers (`extra_layers_key`) change; all others
        return themselves.

        Raises:
            CheckpointError: config.json does not say how many layers there are.
        """
        num_extra = self.sizes(config).get(self.extra_layers_key) if self.extra_layers_key else None
        if not num_extra:
            return self
        assert self.extra_layers_key
        first = self.num_layers(config)
        last = first + _size(self.sizes(config), self.extra_layers_key)
        return replace(self, extra_layers=(first, last))

    def _find(self, name: str) -> Place:
        place = self._matcher.place(name)
        if place is None:
            places = self._matcher.places(name)
            if len(places) != 1:
                raise FamilyError(self._clash(name, places) if places else self._unknown(name))
            place = places[0]
        first, last = self.extra_layers
        if place.layer is None or not first <= place.layer < last or place.component == "extra":
            return place
        roles = tuple(f"{place.component}.{role}" for role in place.roles)
        return place._replace(rule=replace(place.rule, component="extra"), roles=roles)

    def pieces(self, name: str, shape: Sequence[int], nbytes: int) -> tuple[Piece, ...]:
        """Cut tensor `name` into its pieces, in storage order.

        A fused expert tensor `[E, R*F, ...]` with R roles gives E x R pieces `[F, ...]`; a tensor
        of a single expert or layer gives one.

        Raises:
            CheckpointError: the shape cannot be cut as the rule says.
            FamilyError: as `place`.
        """
        what = (name, tuple(shape), nbytes)
        found = self._pieces_memo.get(what)
        if found is None:
            place = self.place(name)
            if not place.rule.stacked and len(place.roles) == 1:
                key = Key(place.component, place.layer, place.expert, place.roles[0])
                found = (Piece(key, what[1], 0, nbytes),)
            else:
                found = tuple(_cut(name, place, what[1], nbytes))
            self._pieces_memo[what] = found
        return found

    def live_name(self, name: str) -> str:
        """`name` with its root replaced by the live module's (no layout conversion)."""
        for root in sorted(self.roots, key=len, reverse=True):
            if root and name.startswith(root):
                return self.roots[0] + name[len(root) :]
        return name

    def sizes(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The sub-mapping of config.json that holds the language model's sizes."""
        if self.text_config and isinstance(config.get(self.text_config), Mapping):
            return config[self.text_config]
        return config

    def num_layers(self, config: Mapping[str, Any]) -> int:
        """Number of decoder layers. Raises CheckpointError when config.json does not say."""
        return _size(self.sizes(config), self.num_layers_key)

    def num_experts(self, config: Mapping[str, Any]) -> int:
        """Number of routed experts per layer; 0 for a dense family.

        transformers saves some configs under another of the names that it treats as equal
        (qwen3_moe in 5.23), so those are tried after the family's own.
        """
        if not self.num_experts_key:
            return 0
        sizes = self.sizes(config)
        names = (self.num_experts_key, *_NUM_EXPERTS_KEYS)
        return _size(sizes, next((n for n in names if n in sizes), self.num_experts_key))

    def top_k(self, config: Mapping[str, Any]) -> int:
        """Number of experts that serve one token; 0 for a dense family."""
        if not (self.num_experts_key and self.top_k_key):
            return 0
        return _size(self.sizes(config), self.top_k_key)

    def _unknown(self, name: str) -> str:
        near = self._matcher.closest_template(self.live_name(name))
        hint = f"; closest known pattern: {near}" if near else ""
        return (
            f"tensor {name!r} fits no pattern of family {self.name!r}{hint}. "
            "Describe it with --map family.yaml, or keep the host's with --unknown host"
        )

    def _clash(self, name: str, places: Sequence[Place]) -> str:
        claims = ", ".join(f"{place.component} ({place.rule.template})" for place in places)
        return (
            f"tensor {name!r} fits several components of family {self.name!r}: {claims}; "
            "expected one. Make the templates disjoint"
        )


def _cut(name: str, place: Place, shape: tuple[int, ...], nbytes: int) -> Iterator[Piece]:
    axis = 1 if place.rule.stacked else 0
    num_roles = len(place.roles)
    splits = len(shape) > axis or num_roles == 1
    if not shape or not splits or (num_roles > 1 and shape[axis] % num_roles):
        wanted = f"{num_roles} equal runs on axis {axis}" if num_roles > 1 else "an expert axis"
        raise CheckpointError(f"{name}: shape {list(shape)} cannot be cut, expected {wanted}")
    num_experts = shape[0] if place.rule.stacked else 1
    size = nbytes // (num_experts * num_roles) if num_experts else 0
    inner = list(shape[1:] if place.rule.stacked else shape)
    if num_roles > 1:
        inner[0] //= num_roles
    for expert in range(num_experts):
        index = expert if place.rule.stacked else place.expert
        for order, role in enumerate(place.roles):
            key = Key(place.component, place.layer, index, role)
            yield Piece(key, tuple(inner), (expert * num_roles + order) * size, size)


def _size(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"config.json: {key} must be a positive integer, got {value!r}")
    return value
