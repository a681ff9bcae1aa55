"""Where the configs of two checkpoints disagree, and which components that matters for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moegraft.checkpoint import Checkpoint

_ATTENTION = frozenset({"attention", "qk_norm", "mixer"})
_FFN = frozenset({"experts", "shared_experts", "mlp"})
_ROUTING = frozenset({"router", "experts"})
_VOCABULARY = frozenset({"embedding", "lm_head"})


@dataclass(frozen=True, slots=True)
class Field:
    """One config field that gives tensors their meaning."""

    name: str
    keys: tuple[str, ...]
    """Spellings in config.json, the first that is present counts."""
    components: frozenset[str] | None
    """Components that the field gives meaning to; None for the whole model."""
    must_agree: bool
    """Moving such a component between different values is refused, not only warned about."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A config field whose values differ."""

    field: str
    host: Any
    donor: Any
    components: tuple[str, ...]
    """Components that the field gives meaning to; empty for the whole model."""
    must_agree: bool

    def matters_for(self, moved: frozenset[str]) -> bool:
        """Whether one of the `moved` components depends on this field."""
        return bool(moved) and (not self.components or not moved.isdisjoint(self.components))

    def __str__(self) -> str:
        """E.g. `rope: host {'rope_theta': 10000.0}, donor {'rope_theta': 500000.0}`."""
        return f"{self.field}: host {self.host}, donor {self.donor}"


def _same(name: str, components: frozenset[str] | None, *more: str) -> Field:
    return Field(name, (name, *more), components, True)


def _meant(name: str, components: frozenset[str] | None, *more: str) -> Field:
    return Field(name, (name, *more), components, False)


FIELDS = (
    _same("hidden_size", None),
    _same("num_attention_heads", _ATTENTION),
    _same("num_key_value_heads", _ATTENTION),
    _same("head_dim", _ATTENTION),
    _same("qk_nope_head_dim", _ATTENTION),
    _same("qk_rope_head_dim", _ATTENTION),
    _same("v_head_dim", _ATTENTION),
    _same("layer_types", _ATTENTION),
    _same("hidden_act", _FFN),
    _same("tie_word_embeddings", _VOCABULARY),
    _meant("sliding_window", _ATTENTION),
    _meant("clip_qkv", _ATTENTION),
    _meant("partial_rotary_factor", _ATTENTION),
    _meant("attention_multiplier", _ATTENTION),
    _meant("residual_multiplier", None),
    _meant("embedding_multiplier", _VOCABULARY),
    _meant("logits_scaling", _VOCABULARY),
    _meant("rms_norm_eps", None, "norm_epsilon"),
    _meant("norm_topk_prob", _ROUTING),
    _meant("routed_scaling_factor", _ROUTING),
    _meant("scoring_func", _ROUTING),
    _meant("topk_method", _ROUTING),
    _meant("n_group", _ROUTING),
    _meant("topk_group", _ROUTING),
    _meant("swiglu_limit", _FFN),
    _meant("max_position_embeddings", _ATTENTION),
    _meant("vocab_size", _VOCABULARY),
    _meant("quantization_config", None),
)
"""Fields that change what the same numbers compute. Sizes that shapes show are not listed."""


def config_differences(host: Checkpoint, donor: Checkpoint) -> tuple[Difference, ...]:
    """Fields of config.json that change the meaning of tensors and differ.

    A field that only one config states is no difference: the other has the library's default,
    which config.json does not tell. Rope settings are compared in one form, whether they stand as
    `rope_theta` with `rope_scaling` or as `rope_parameters`.
    """
    return tuple(_differences(host, donor))


def _differences(host: Checkpoint, donor: Checkpoint) -> Iterator[Difference]:
    configs = [c.family.sizes(c.config) for c in (host, donor)]
    yield from _compare("num_layers", host.num_layers, donor.num_layers, None, True)
    yield from _compare("num_experts", host.num_experts, donor.num_experts, None, True)
    top_k = (host.family.top_k(host.config), donor.family.top_k(donor.config))
    yield from _compare("top_k", top_k[0], top_k[1], _ROUTING, False)
    ropes = [rope(config) for config in configs]
    if all(ropes):
        yield from _compare("rope", ropes[0], ropes[1], _ATTENTION, False)
    for field in FIELDS:
        ours, theirs = (_first(config, field.keys) for config in configs)
        if ours is not None and theirs is not None:
            yield from _compare(field.name, ours, theirs, field.components, field.must_agree)


def rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary position settings of a config in one form, defaults left out."""
    found = dict(config.get("rope_parameters") or {})
    if not found:
        found = dict(config.get("rope_scaling") or {})
        if config.get("rope_theta") is not None:
            found["rope_theta"] = config["rope_theta"]
    kind = found.pop("rope_type", found.pop("type", "default"))
    if kind != "default":
        found["rope_type"] = kind
    return {k: float(v) if isinstance(v, int) else v for k, v in sorted(found.items())}


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)


def _compare(
    name: str, host: Any, donor: Any, components: frozenset[str] | None, must_agree: bool
) -> Iterator[Difference]:
    if host != donor:
        yield Difference(name, host, donor, tuple(sorted(components or ())), must_agree)


Severity = Literal["error", "warning", "note"]


def severity(difference: Difference, moved: frozenset[str]) -> Severity:
    """`note` when no moved component depends on the field, else `error` or `warning`."""
    if not difference.matters_for(moved):
        return "note"
    return "error" if difference.must_agree else "warning"
