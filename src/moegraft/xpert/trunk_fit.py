"""Would embeddings, attention, norms and head of a donor mean the same in a target?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedConfig

from moegraft.checkpoint import Checkpoint
from moegraft.errors import IncompatibleError
from moegraft.families import Key
from moegraft.xpert.target import Target, read_config

ATTENTION = ("attention", "qk_norm")
PROJECTIONS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
_NUMBERS = {
    "embedding": ("embedding_multiplier",),
    "attention": ("attention_multiplier", "residual_multiplier", "clip_qkv", "sliding_window"),
    "norm": ("rms_norm_eps",),
    "lm_head": ("logits_scaling",),
}
"""Config fields that the weights of a component were trained under."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Sizes of an attention module."""

    num_groups: int
    """Key-value heads; each serves `num_queries` query heads."""
    num_queries: int
    size: int

    @staticmethod
    def of(config: PreTrainedConfig) -> "Heads":
        """As the config says."""
        text: Any = config.get_text_config()
        num = text.num_attention_heads
        groups = getattr(text, "num_key_value_heads", None) or num
        size = getattr(text, "head_dim", None) or text.hidden_size // num
        return Heads(groups, num // groups, size)

    def rows(self, groups: Int[Tensor, " group"], *, queries: bool) -> Int[Tensor, " row"]:
        """Rows of the q projection, or of k and v, that belong to these groups."""
        size = self.size * (self.num_queries if queries else 1)
        return (groups[:, None] * size + torch.arange(size)).flatten()


@dataclass(frozen=True)
class Fit:
    """A donor and a target, whose layers start from some of the donor's."""

    donor: Checkpoint
    target: Target
    layers: tuple[int, ...]
    """The donor's layer behind each of the target's."""

    @cached_property
    def configs(self) -> tuple[Any, Any]:
        """Of the language models of donor and target."""
        donor = read_config(self.donor.config, self.donor.source)
        return donor.get_text_config(), self.target.config.get_text_config()

    @cached_property
    def heads(self) -> tuple[Heads, Heads]:
        """Of donor and target."""
        return Heads.of(self.configs[0]), Heads.of(self.configs[1])

    def check(self, components: Sequence[str]) -> None:
        """Raises IncompatibleError for a component that would not mean the same in the target."""
        if {"embedding", "lm_head"} & set(components):
            self._check_vocabulary("lm_head" in components)
        if "norm" in components:
            self._check_roles(("norm",), "norm", "norms stand at other places")
        if "attention" in components:
            self._check_roles(
                (*ATTENTION, "mixer"), "attention", "queries and keys are made otherwise"
            )
            self._check_heads()
            self._check_shapes()
        for component in components:
            self._check_numbers(component)

    def _check_vocabulary(self, with_head: bool) -> None:
        old, new = self.configs
        if old.vocab_size != new.vocab_size:
            self._refuse(
                "embeddings",
                f"vocab_size is {new.vocab_size}, and {old.vocab_size} in {self.donor.source}",
                "set it so, or leave embedding and lm_head out of --inherit",
            )
        if with_head and new.tie_word_embeddings and not self.donor.tied_embeddings:
            self._refuse(
                "lm_head",
                f"tie_word_embeddings is true, and {self.donor.source} has a head of its own",
                "set it to false, or leave lm_head out of --inherit",
            )

    def _check_heads(self) -> None:
        old, new = self.heads
        if (old.size, old.num_queries) != (new.size, new.num_queries):
            self._refuse(
                "attention",
                f"heads of {new.size} dimensions, {new.num_queries} per key-value head, and "
                f"{old.size} and {old.num_queries} in {self.donor.source}; heads are kept or "
                "doubled whole",
                "set head_dim and the numbers of heads so, or leave attention out of --inherit",
            )
        ropes = [dict(getattr(config, "rope_parameters", None) or {}) for config in self.configs]
        if ropes[0] != ropes[1]:
            self._refuse(
                "attention",
                f"rotary embeddings are {ropes[1]}, and {ropes[0]} in {self.donor.source}",
                "set rope_parameters so, or leave attention out of --inherit",
            )
        if any(tensor.keys[0].component == "mixer" for tensor in self.target.tensors):
            self._refuse(
                "attention",
                f"layers of {self.target.family.name} mix tokens by other means too",
                "leave attention out of --inherit",
            )

    def _check_numbers(self, component: str) -> None:
        for name in _NUMBERS[component]:
            had, has = (_number(config, name) for config in self.configs)
            if had != has:
                self._refuse(
                    component,
                    f"{name} is {has}, and {had} in {self.donor.source}",
                    f"set it so, or leave {component} out of --inherit",
                )

    def _check_shapes(self) -> None:
        """Whatever is no plain projection has to have the very same sizes."""
        shapes = {key: piece.shape for key, piece in self.donor.pieces().items()}
        for tensor in self.target.tensors:
            key = tensor.keys[0]
            if key.component not in ATTENTION or key.layer is None:
                continue
            had = shapes[key._replace(layer=self.layers[key.layer])]
            part = key.role.partition(".")[0]
            is_plain = part in PROJECTIONS
            if part in ("q_norm", "k_norm"):
                per_head = [shape[0] == self.heads[0].size for shape in (had, tensor.shape)]
                is_plain = per_head[0] == per_head[1]
            if not is_plain and had != tensor.shape:
                self._refuse(
                    "attention",
                    f"{tensor.name} has shape {list(tensor.shape)}, and {list(had)} in "
                    f"{self.donor.source}",
                    "leave attention out of --inherit",
                )

    def _check_roles(self, components: Sequence[str], name: str, reason: str) -> None:
        """Every layer of the target has the same kinds of tensors as the donor's behind it."""
        wanted = _roles((key for one in self.target.tensors for key in one.keys), components)
        had = _roles(self.donor.pieces(), components)
        for layer, source in enumerate(self.layers):
            here, there = wanted.get(layer, set()), had.get(source, set())
            if here != there:
                self._refuse(
                    name,
                    f"{reason} than in {self.donor.source} ({self.donor.family.name}): only one "
                    f"of them has {', '.join(sorted(here ^ there))}",
                    f"choose another family, or leave {name} out of --inherit",
                )

    def _refuse(self, what: str, why: str, way_out: str) -> None:
        where = f"{self.target.source} ({self.target.family.name})"
        raise IncompatibleError(f"{where}: cannot inherit {what}: {why}; {way_out}")


def _number(config: Any, name: str) -> Any:
    """A field's value, or what its absence means; a window over the whole context is none."""
    value = getattr(config, name, None)
    if name == "sliding_window":
        is_window = value and value < config.max_position_embeddings
        return value if is_window else None
    if value is None and name == "attention_multiplier":
        return Heads.of(config).size ** -0.5
    return 1.0 if value is None and name != "clip_qkv" else value


def _roles(keys: Iterable[Key], components: Sequence[str]) -> Mapping[int, set[str]]:
    found: dict[int, set[str]] = {}
    for key in keys:
        if key.component in components and key.layer is not None:
            found.setdefault(key.layer, set()).add(key.role)
    return found
