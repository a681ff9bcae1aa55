"""The MoE family in which a dense model can live on, and its config with every size kept.

| dense | MoE | weights of the k chosen experts |
| --- | --- | --- |
| olmo2 | flex_olmo | softmax over all, not renormalised: a norm follows, so scale is nothing |
| llama, mistral | mixtral | renormalised always |
| qwen3 | qwen3_moe | renormalised (`norm_topk_prob`), so that fewer experts keep the scale |

With all experts active the weights of a softmax add up to 1, and all three agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moegraft.checkpoint import Checkpoint
from moegraft.errors import BranchError, CheckpointError
from moegraft.families import FAMILIES, Family, Key


@dataclass(frozen=True, slots=True)
class Twin:
    """A MoE family whose layers compute what a dense family's do, but for the FFN."""

    family: str
    ffn_key: str
    """Where its config keeps the width of one expert."""
    fixed: Mapping[str, Any]
    """Fields that the dense config does not have."""


_UNROUTED = {"router_aux_loss_coef": 0.0, "output_router_logits": False}
"""No load-balancing loss: with all experts active it is constant."""

TWINS = {
    "olmo2": Twin("flex_olmo", "intermediate_size", {"norm_topk_prob": False}),
    "llama": Twin("mixtral", "intermediate_size", {"router_jitter_noise": 0.0}),
    "mistral": Twin("mixtral", "intermediate_size", {"router_jitter_noise": 0.0}),
    "qwen3": Twin("qwen3_moe", "moe_intermediate_size", {"norm_topk_prob": True}),
}
"""By dense `model_type`."""

_LEFT_OUT = {"model_type", "architectures", "transformers_version", "auto_map", "_name_or_path"}


def twin_of(anchor: Checkpoint) -> tuple[Twin, Family]:
    """The twin of a dense checkpoint's family.

    Raises:
        BranchError: there is none.
    """
    twin = TWINS.get(anchor.family.name)
    if twin is None:
        known = ", ".join(f"{dense} -> {twin.family}" for dense, twin in TWINS.items())
        raise BranchError(
            f"{anchor.source}: no MoE family computes what {anchor.family.name!r} does; "
            f"expected one of {known}, or a MoE to append experts to"
        )
    return twin, FAMILIES[twin.family]


def twin_config(anchor: Checkpoint, num_experts: int) -> Any:
    """The transformers config of the MoE with `num_experts` experts, all of them active.

    Every default of the dense class is written out, because the twin's defaults differ (rope
    base, norm epsilon, sliding window).

    Raises:
        BranchError: the dense model has something that the twin cannot compute.
        CheckpointError: transformers refuses the anchor's config.json.
    """
    from transformers import AutoConfig

    twin, family = twin_of(anchor)
    try:
        dense = AutoConfig.from_pretrained(str(anchor.path), trust_remote_code=False).to_dict()
    except (OSError, ValueError) as error:
        said = next(iter(str(error).strip().splitlines()), repr(error))
        raise CheckpointError(
            f"{anchor.source}: transformers refuses config.json: {said}"
        ) from None
    _check_computable(anchor, dense)
    known = {*AutoConfig.for_model(twin.family).to_dict(), "head_dim"} - _LEFT_OUT
    kept = {key: value for key, value in dense.items() if key in known}
    chosen = kept | _UNROUTED | dict(twin.fixed)
    chosen[twin.ffn_key] = dense["intermediate_size"]
    assert family.num_experts_key
    chosen[family.num_experts_key] = num_experts
    chosen["num_experts_per_tok"] = num_experts
    config = AutoConfig.for_model(twin.family, **chosen)
    config.architectures = [family.architectures[0]]
    return config


def check_tensors(anchor: Checkpoint) -> None:
    """Check that the twin has a place for every tensor of the dense checkpoint.

    Raises:
        BranchError: the first tensor without one, such as a bias.
    """
    family = twin_of(anchor)[1]
    for key, stored in anchor.pieces().items():
        bias = key.role.endswith(".bias")
        if not key.role.endswith(".weight") and not bias and key.component != "extra":
            raise BranchError(
                f"{anchor.source}: {stored.name} is quantised; expected plain numbers"
            )
        if bias and not (key.component == "attention" and family.name != "mixtral"):
            raise BranchError(
                f"{anchor.source}: {stored.name} is a bias, which {family.name!r} cannot hold"
            )


def expert_key(key: Key, expert: int) -> Key:
    """Where a piece of the dense FFN goes as `expert`."""
    assert key.component == "mlp", key
    return Key("experts", key.layer, expert, key.role)


def _check_computable(anchor: Checkpoint, dense: Mapping[str, Any]) -> None:
    if anchor.family.name == "qwen3" and dense.get("use_sliding_window"):
        raise BranchError(
            f"{anchor.source}: config.json has use_sliding_window, which qwen3_moe would apply to "
            "all layers; expected full attention"
        )
    if dense.get("quantization_config"):
        raise BranchError(f"{anchor.source}: is quantised; expected plain numbers")
