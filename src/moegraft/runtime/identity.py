"""What tells two checkpoints apart: content hashes of components, and configs that compute."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch
from transformers import AutoConfig

from moegraft.checkpoint import Checkpoint
from moegraft.runtime.weights import Weights

_WITHOUT_EFFECT = frozenset(
    {
        *("_name_or_path", "architectures", "model_type", "transformers_version"),
        *("dtype", "torch_dtype", "use_cache", "return_dict", "torchscript", "tie_word_embeddings"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "num_labels"),
        *("initializer_range", "attention_dropout", "hidden_dropout", "router_jitter_noise"),
        *("router_aux_loss_coef", "aux_loss_alpha", "seq_aux", "output_router_logits"),
        *("output_attentions", "output_hidden_states", "max_position_embeddings"),
        *("pretraining_tp", "num_nextn_predict_layers", "chunk_size_feed_forward"),
    }
)
"""Config fields that leave the logits of an evaluation alone."""


def config_differences(host: Checkpoint, donor: Checkpoint) -> list[str]:
    """Config fields that make two checkpoints with equal weights compute differently.

    One phrase each; fields without effect on the logits of an evaluation are left out.
    """
    ours, theirs = _parsed(host), _parsed(donor)
    found = [
        f"{key} is {ours.get(key)!r} in the host and {theirs.get(key)!r} in the donor"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if host.tied_embeddings and not donor.tied_embeddings:
        found.append("the host ties its embeddings, the donor does not")
    return found


def component_hashes(checkpoint: Checkpoint, held: Weights) -> dict[tuple[str, int | None], str]:
    """sha256 over name, dtype, shape and bytes of each component's live tensors, by layer."""
    digests: dict[tuple[str, int | None], Any] = {}
    for name in sorted(held):
        place = checkpoint.family.place(name)
        digest = digests.setdefault((place.component, place.layer), sha256())
        tensor = held[name].detach()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return {key: digest.hexdigest() for key, digest in digests.items()}


def _parsed(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json as transformers reads it, without what has no effect; nested keys dotted."""
    config = AutoConfig.from_pretrained(str(checkpoint.path), trust_remote_code=False)
    flat: dict[str, Any] = {}

    def flatten(prefix: str, values: Mapping[Any, Any]) -> None:
        for key, value in values.items():
            if key in _WITHOUT_EFFECT:
                continue
            if isinstance(value, Mapping):
                flatten(f"{prefix}{key}.", value)
            else:
                flat[f"{prefix}{key}"] = value

    flatten("", config.to_dict())
    return flat
