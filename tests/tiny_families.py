"""Tiny random models of every family in the catalogue, and their tensors as bytes."""

import functools
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_COMMON = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "intermediate_size": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_FOUR = {"num_experts": 4, "num_experts_per_tok": 2}
_FOUR_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_QWEN_SHARED = {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 12}
_GROUPED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
}
_LINEAR = {
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}
_STATE_SPACE = {
    "num_hidden_layers": 4,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 4,
    "mamba_dt_rank": 4,
}

TINY: dict[str, dict[str, Any]] = {
    "olmoe": _FOUR,
    "flex_olmo": _FOUR,
    "mixtral": _FOUR_LOCAL,
    "qwen2_moe": {**_FOUR, **_QWEN_SHARED, "mlp_only_layers": [0]},
    "qwen3_moe": {**_FOUR, "moe_intermediate_size": 8, "head_dim": 8, "mlp_only_layers": [0]},
    "qwen3_5_moe_text": {**_FOUR, **_QWEN_SHARED, **_LINEAR},
    "deepseek_v2": {**_GROUPED, **_LATENT},
    "deepseek_v3": {**_GROUPED, **_LATENT},
    "gpt_oss": {**_FOUR_LOCAL, "head_dim": 8},
    "granitemoe": {**_FOUR_LOCAL, "tie_word_embeddings": True},
    "glm4_moe": {**_GROUPED, "head_dim": 8, "use_qk_norm": True, "attention_bias": True},
    "jamba": {**_FOUR, **_STATE_SPACE},
    "olmo2": {},
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
}
"""Sizes by `model_type`; together they show every kind of tensor that the catalogue names."""


def build_tiny(model_type: str, *, seed: int = 0, **sizes: Any) -> PreTrainedModel:
    """A random model of the family in float32, every parameter different from its default."""
    config = AutoConfig.for_model(model_type, **(_COMMON | TINY[model_type] | sizes))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(0.05 * torch.randn_like(tensor))
    return model


@functools.cache
def tiny_model(model_type: str) -> PreTrainedModel:
    """The same as `build_tiny`, built once per process; read only."""
    return build_tiny(model_type)


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the safetensors files in `folder`, by stored name."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    return found


def live_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters and saved buffers of the live model; tied ones once, under the first name."""
    by_storage: dict[int, str] = {}
    tensors = model.state_dict()
    for name, tensor in tensors.items():
        by_storage.setdefault(tensor.data_ptr(), name)
    return {name: tensors[name] for name in by_storage.values()}


def data(tensor: torch.Tensor) -> bytes:
    """The tensor's bytes in row-major order."""
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
