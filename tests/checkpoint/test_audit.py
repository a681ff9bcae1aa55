import json

import pytest

from moegraft.checkpoint import open_checkpoint
from moegraft.errors import CheckpointError
from small_checkpoints import CONFIG, make_file, olmoe_tensors


def refused(folder, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


def without(folder, *endings):
    kept = {n: t for n, t in olmoe_tensors().items() if not any(e in n for e in endings)}
    make_file(folder / "model.safetensors", kept)


def configure(folder, **changes):
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def test_a_missing_expert_is_named(folder):
    without(folder, "layers.1.mlp.experts.2.")
    refused(folder, "expert 2 of layer 1 lacks down.weight, but config.json says 3 experts")


def test_a_missing_tensor_of_one_expert_is_named(folder):
    without(folder, "layers.1.mlp.experts.1.up_proj")
    refused(folder, "expert 1 of layer 1 lacks up.weight")


def test_a_missing_tensor_of_the_first_expert_is_named(folder):
    without(folder, "layers.0.mlp.experts.0.up_proj")
    refused(folder, "expert 0 of layer 0 lacks up.weight")


def test_more_experts_than_the_config_says_are_refused(folder):
    configure(folder, num_experts=2)
    refused(folder, "layer 0 has expert 2, but config.json says 2 experts")


def test_fewer_experts_than_the_config_says_are_refused(folder):
    configure(folder, num_experts=4)
    refused(folder, "expert 3 of layer 0 lacks")


def test_a_missing_layer_is_named(folder):
    without(folder, "layers.0.")
    refused(folder, "no tensor of layer 0, but config.json says 2 layers")


def test_fewer_layers_than_the_config_says_are_refused(folder):
    configure(folder, num_hidden_layers=3)
    refused(folder, "no tensor of layer 2, but config.json says 3 layers")


def test_more_layers_than_the_config_says_are_refused(folder):
    configure(folder, num_hidden_layers=1)
    refused(folder, r"layers\.1\..* is in layer 1, but config.json says 1 layers")


def test_experts_without_a_router_and_the_reverse_are_refused(folder):
    without(folder, "layers.1.mlp.gate.")
    refused(folder, "layer 1 has experts but no router")
    without(folder, "layers.1.mlp.experts.")
    refused(folder, "layer 1 has a router but no experts")


@pytest.mark.parametrize("layer", [0, 1])
def test_a_tensor_that_one_layer_lacks_is_named(layer, folder):
    without(folder, f"layers.{layer}.self_attn.k_proj")
    refused(folder, f"layer {layer} lacks attention 'k_proj', which layer {1 - layer} has")


def test_a_missing_final_norm_or_embedding_is_named(folder):
    without(folder, "model.norm.")
    refused(folder, "has no final norm")
    without(folder, "embed_tokens")
    refused(folder, "has no embedding")


def test_a_missing_head_is_fine_only_when_tied(folder):
    without(folder, "lm_head")
    refused(folder, "has no lm_head, but config.json does not tie it to the embedding")
    configure(folder, tie_word_embeddings=True)
    assert open_checkpoint(folder).tied_embeddings


@pytest.mark.parametrize("value", [None, "16", 0, -1, 1.5, True])
def test_a_config_without_numbers_is_one_line(value, folder):
    configure(folder, num_hidden_layers=value)
    refused(folder, "num_hidden_layers must be a positive integer")
