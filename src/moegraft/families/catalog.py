"""The supported model families, as data."""

from moegraft.families.spec import Family, Rule

_ATTENTION = tuple(
    Rule(f"{{root}}layers.{{layer}}.self_attn.{part}_proj.{{leaf}}", "attention", (f"{part}_proj",))
    for part in "qkvo"
)
_QK_NORM = tuple(
    Rule(f"{{root}}layers.{{layer}}.self_attn.{part}_norm.{{leaf}}", "qk_norm", (f"{part}_norm",))
    for part in "qk"
)
_OUTER = (
    Rule("{root}embed_tokens.{leaf}", "embedding", ("embed_tokens",)),
    Rule("lm_head.{leaf}", "lm_head", ("lm_head",)),
    Rule("{root}norm.{leaf}", "norm", ("final_norm",)),
)
_PRE_NORMS = tuple(
    Rule(f"{{root}}layers.{{layer}}.{name}.{{leaf}}", "norm", (name,))
    for name in ("input_layernorm", "post_attention_layernorm")
)
_EXPERTS_PUBLISHED = tuple(
    Rule(
        f"{{root}}layers.{{layer}}.mlp.experts.{{expert}}.{part}_proj.{{leaf}}", "experts", (part,)
    )
    for part in ("gate", "up", "down")
)
_EXPERTS_FUSED = (
    Rule(
        "{root}layers.{layer}.mlp.experts.gate_up_proj",
        "experts",
        ("gate.weight", "up.weight"),
        stacked=True,
    ),
    Rule("{root}layers.{layer}.mlp.experts.down_proj", "experts", ("down.weight",), stacked=True),
)
_ROUTER = (Rule("{root}layers.{layer}.mlp.gate.{leaf}", "router", ("router",)),)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="olmoe",
            architectures=("OlmoeForCausalLM",),
            rules=(
                *_OUTER,
                *_PRE_NORMS,
                *_ATTENTION,
                *_QK_NORM,
                *_ROUTER,
                *_EXPERTS_PUBLISHED,
                *_EXPERTS_FUSED,
            ),
            num_experts_key="num_experts",
            router_module="model.layers.{layer}.mlp.gate",
        ),
    )
}
"""Families by `model_type`."""
