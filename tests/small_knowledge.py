"""Knowledge of a tiny donor, and configs of tiny targets."""

from moegraft.checkpoint import open_checkpoint
from moegraft.xpert.decompose import Decomposition
from moegraft.xpert.experts import donor_fingerprint, moe_layers
from moegraft.xpert.knowledge import decompose_experts

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def target_config(model_type="llama", **sizes):
    more = {"num_experts": 1, "num_experts_per_tok": 1} if model_type == "olmoe" else {}
    return {"model_type": model_type, **SIZES, **more, **sizes}


def select(donor, experts):
    chosen = [{"expert": expert} for expert in experts]
    return {
        "source": donor.source,
        "fingerprint": donor_fingerprint(donor),
        "score": "a_minus_c",
        "num_best": len(experts),
        "num_experts": donor.num_experts,
        "domains": ["a", "b"],
        "num_tokens": [5, 5],
        "layers": [{"layer": layer, "chosen": chosen} for layer in moe_layers(donor)],
    }


def take(donor_path, out, how=Decomposition(), experts=(3, 1, 0, 7)):  # noqa: B008
    donor = open_checkpoint(str(donor_path))
    return decompose_experts(donor, select(donor, experts), how, out)
