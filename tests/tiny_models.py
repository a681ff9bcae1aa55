"""Tiny random models of several families in memory, and requests that share prefixes."""

import random
from functools import cache
from typing import Any

WORDS = [
    *("the", "cat", "sat", "on", "a", "mat", "while", "rain"),
    *("fell", "over", "seven", "hills", "and", "nobody", "saw", "it"),
]
SIZES = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "sliding_window": 24},
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 8,
        "sliding_window": 24,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 2.0},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 16},
    "jamba": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
}


@cache
def tiny_model(family: str) -> Any:
    """A random model in float32, ready to score."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SIZES | FAMILIES[family]))
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def sentence(source: random.Random, num_words: int) -> str:
    """Random words."""
    return " ".join(source.choice(WORDS) for _ in range(num_words))


def choice_requests(num_questions: int = 12, seed: int = 0) -> list[tuple[str, str]]:
    """(context, continuation): five examples before every question, then four choices each.

    Every other question has one-letter choices. A few requests share nothing, one has no context.
    """
    source = random.Random(seed)
    examples = "".join(f"Q: {sentence(source, 6)}?\nA: {sentence(source, 2)}\n\n" for _ in range(5))
    requests = []
    for question in range(num_questions):
        context = f"{examples}Q: {sentence(source, source.randint(3, 12))}?\nA:"
        for letter in "ABCD":
            text = sentence(source, source.randint(1, 3)) if question % 2 else letter
            requests.append((context, f" {text}"))
    requests += [(f"Z{sentence(source, 3)} ", "yes") for _ in range(3)]
    return [*requests, ("", "hello")]


def instances(kind: str, arguments: list[Any]) -> list[Any]:
    """lm-eval's request objects."""
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=0, metadata=("t", i, 1))
        for i, one in enumerate(arguments)
    ]
