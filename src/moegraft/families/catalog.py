"""The supported model families, as data."""

from moegraft.families.names import Rule
from moegraft.families.patterns import (
    LAYER,
    attention,
    correction_bias,
    experts,
    ffn,
    fused_experts,
    in_layer,
    latent_attention,
    outer,
    prediction_layers,
)
from moegraft.families.spec import Family

_PRE_NORMS = in_layer("norm", "", "input_layernorm", "post_attention_layernorm")
_POST_NORMS = in_layer("norm", "", "post_attention_layernorm", "post_feedforward_layernorm")
_EXPERTS = experts("mlp.experts", gate="gate_proj", up="up_proj", down="down_proj")
_ROUTER = (Rule(f"{LAYER}mlp.gate.{{leaf}}", "router", ("router",)),)
_GATED_SHARED_EXPERT = (
    *ffn("shared_experts", "mlp.shared_expert."),
    *in_layer("shared_experts", "mlp.", "shared_expert_gate"),
)
_DENSE = (*outer(), *attention(), *_PRE_NORMS, *ffn("mlp", "mlp."))
_DEEPSEEK = (
    *outer(),
    *_PRE_NORMS,
    *latent_attention(),
    *_ROUTER,
    *_EXPERTS,
    *ffn("shared_experts", "mlp.shared_experts."),
    *ffn("mlp", "mlp."),
)
_GPT_OSS_EXPERTS = tuple(
    Rule(f"{LAYER}mlp.experts.{role}_proj{suffix}", "experts", (f"{role}.{leaf}",), stacked=True)
    for role in ("gate_up", "down")
    for suffix, leaf in (
        ("", "weight"),
        ("_bias", "bias"),
        ("_blocks", "weight_blocks"),
        ("_scales", "weight_scales"),
    )
)
"""Gate and up alternate along the last axis, so they cannot be told apart as byte runs."""

_MLP_GATE = "model.layers.{layer}.mlp.gate"
_MLP_EXPERTS = "model.layers.{layer}.mlp.experts"

_MOE = (
    Family(
        name="olmoe",
        architectures=("OlmoeForCausalLM",),
        rules=(*outer(), *_PRE_NORMS, *attention(qk_norm=True), *_ROUTER, *_EXPERTS),
        num_experts_key="num_experts",
        router_module=_MLP_GATE,
        experts_module=_MLP_EXPERTS,
        note="norms on queries and keys",
    ),
    Family(
        name="flex_olmo",
        architectures=("FlexOlmoForCausalLM",),
        rules=(*outer(), *_POST_NORMS, *attention(qk_norm=True), *_ROUTER, *_EXPERTS),
        num_experts_key="num_experts",
        router_module=_MLP_GATE,
        experts_module=_MLP_EXPERTS,
        note="norms after attention and experts",
    ),
    Family(
        name="mixtral",
        architectures=("MixtralForCausalLM",),
        rules=(
            *outer(),
            *_PRE_NORMS,
            *attention(),
            Rule(f"{LAYER}block_sparse_moe.gate.{{leaf}}", "router", ("router",)),
            *_ROUTER,
            *experts("block_sparse_moe.experts", gate="w1", up="w3", down="w2"),
            *fused_experts("mlp.experts"),
        ),
        num_experts_key="num_local_experts",
        router_module=_MLP_GATE,
        experts_module=_MLP_EXPERTS,
        note="published under `block_sparse_moe`, live under `mlp`",
    ),
    Family(
        name="qwen2_moe",
        architectures=("Qwen2MoeForCausalLM",),
        rules=(*_DENSE, *_ROUTER, *_EXPERTS, *_GATED_SHARED_EXPERT),
        num_experts_key="num_experts",
        ffn_key="moe_intermediate_size",
        router_module=_MLP_GATE,
        experts_module=_MLP_EXPERTS,
        note="biases on queries, keys and values; dense layers",
    ),
    Family(
        name="qwen3_moe",
        architectures=("Qwen3MoeForCausalLM",),
        rules=(
            *outer(),
            *_PRE_NORMS,
            *attention(qk_norm=True),
            *ffn("mlp", "mlp."),
            *_ROUTER,
            *_EXPERTS,
        ),
        num_experts_key="num_experts",
        ffn_key="moe_intermediate_size",
        router_module=_MLP_GATE,
        experts_module=_MLP_EXPERTS,
        note="dense layers",
    ),
    Family(
        name="qwen3_5_moe",
        aliases=("qwen3_5_moe_text",),
        architectures=("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
        rules=(
            *outer(),
            *_PRE_NORMS,
            *attention(qk_norm=True),
            *in_layer(
                "mixer",
                "linear_attn.",
                *("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
                *("conv1d", "norm", "out_proj"),
            ),
            *in_layer("mixer", "linear_attn.", "A_log", "dt_bias", leaf=""),
            *_ROUTER,
            *_EXPERTS,
            *_GATED_SHARED_EXPERT,
            Rule("mtp.{any}", "extra", ("mtp",)),
            Rule("model.visual.{any}", "extra", ("visual",)),
        ),
        roots=("model.", "model.language_model."),
        text_config="text_config",
        num_experts_key="num_experts",
        ffn_key="moe_intermediate_size",
        router_module=_MLP_GATE,
        experts_module=_MLP_EXPERTS,
        branching_cache=False,
        note="linear attention in most layers; vision tower and `mtp.*` stay the host's",
    ),
    Family(
        name="deepseek_v2",
        architectures=("DeepseekV2ForCausalLM",),
        rules=_DEEPSEEK,
        num_experts_key="n_routed_experts",
        ffn_key="moe_intermediate_size",
        router_module=_MLP_GATE,
        experts_module=_MLP_EXPERTS,
        note="latent attention; leading dense layers",
    ),
    Family(
        name="deepseek_v3",
        architectures=("DeepseekV3ForCausalLM",),
        rules=(*_DEEPSEEK, *correction_bias(), *prediction_layers()),
        num_experts_key="n_routed_experts",
        ffn_key="moe_intermediate_size",
        router_module=_MLP_GATE,
        experts_module=_MLP_EXPERTS,
        extra_layers_key="num_nextn_predict_layers",
        note="latent attention; FP8 block scales; router bias; leading dense layers; "
        "multi-token-prediction layers stay the host's",
    ),
    Family(
        name="gpt_oss",
        architectures=("GptOssForCausalLM",),
        rules=(
            *outer(),
            *_PRE_NORMS,
            *attention(),
            *in_layer("attention", "self_attn.", "sinks", leaf=""),
            *in_layer("router", "mlp.", "router"),
            *_GPT_OSS_EXPERTS,
        ),
        num_experts_key="num_local_experts",
        router_module="model.layers.{layer}.mlp.router",
        experts_module=_MLP_EXPERTS,
        note="MXFP4 blocks and scales; transposed experts with interleaved gate and up; biases; "
        "attention sinks",
    ),
    Family(
        name="granitemoe",
        architectures=("GraniteMoeForCausalLM",),
        rules=(
            *outer(),
            *_PRE_NORMS,
            *attention(),
            Rule(f"{LAYER}block_sparse_moe.router.layer.{{leaf}}", "router", ("router",)),
            *in_layer("router", "block_sparse_moe.", "router"),
            Rule(
                f"{LAYER}block_sparse_moe.input_linear.weight",
                "experts",
                ("gate.weight", "up.weight"),
                stacked=True,
            ),
            Rule(
                f"{LAYER}block_sparse_moe.output_linear.weight",
                "experts",
                ("down.weight",),
                stacked=True,
            ),
            *fused_experts("block_sparse_moe.experts"),
        ),
        num_experts_key="num_local_experts",
        router_module="model.layers.{layer}.block_sparse_moe.router",
        experts_module="model.layers.{layer}.block_sparse_moe.experts",
        note="published as `input_linear` and `output_linear`; tied embeddings",
    ),
    Family(
        name="glm4_moe",
        architectures=("Glm4MoeForCausalLM",),
        rules=(
            *outer(),
            *_PRE_NORMS,
            *attention(qk_norm=True),
            *_ROUTER,
            *correction_bias(),
            *_EXPERTS,
            *ffn("shared_experts", "mlp.shared_experts."),
            *ffn("mlp", "mlp."),
            *prediction_layers(),
        ),
        num_experts_key="n_routed_experts",
        ffn_key="moe_intermediate_size",
        router_module=_MLP_GATE,
        experts_module=_MLP_EXPERTS,
        extra_layers_key="num_nextn_predict_layers",
        note="router bias; leading dense layers; multi-token-prediction layers stay the host's",
    ),
    Family(
        name="jamba",
        architectures=("JambaForCausalLM",),
        rules=(
            *outer(final_norm="final_layernorm"),
            *in_layer("norm", "", "input_layernorm", "pre_ff_layernorm"),
            *attention(),
            *in_layer(
                "mixer",
                "mamba.",
                *("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj"),
                *("dt_layernorm", "b_layernorm", "c_layernorm"),
            ),
            *in_layer("mixer", "mamba.", "A_log", "D", leaf=""),
            *in_layer("router", "feed_forward.", "router"),
            *experts("feed_forward.experts", gate="gate_proj", up="up_proj", down="down_proj"),
            *ffn("mlp", "feed_forward."),
        ),
        num_experts_key="num_experts",
        router_module="model.layers.{layer}.feed_forward.router",
        experts_module="model.layers.{layer}.feed_forward.experts",
        branching_cache=False,
        note="state-space layers between attention layers; experts on some layers",
    ),
)

_DENSE_FAMILIES = (
    Family(
        name="olmo2",
        architectures=("Olmo2ForCausalLM",),
        rules=(*outer(), *_POST_NORMS, *attention(qk_norm=True), *ffn("mlp", "mlp.")),
        note="norms after attention and FFN",
    ),
    Family(name="llama", architectures=("LlamaForCausalLM",), rules=_DENSE, note="optional biases"),
    Family(name="mistral", architectures=("MistralForCausalLM",), rules=_DENSE),
    Family(
        name="qwen3",
        architectures=("Qwen3ForCausalLM",),
        rules=(*outer(), *_PRE_NORMS, *attention(qk_norm=True), *ffn("mlp", "mlp.")),
        note="tied embeddings in the small ones",
    ),
)

FAMILIES: dict[str, Family] = {family.name: family for family in (*_MOE, *_DENSE_FAMILIES)}
"""Families by `model_type`."""
