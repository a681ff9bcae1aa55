"""Invariant 3: published and fused files give one reader view, and from_pretrained agrees."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from moegraft.checkpoint import load_tensor, open_checkpoint, read_bytes
from tiny_families import TINY, data, live_tensors, tiny_model

INPUT_IDS = torch.arange(2, 14)[None]


def save_published(model, folder, **how):
    model.save_pretrained(folder, **how)
    return folder


def save_fused(model, folder):
    """Write the live module's own tensors, under its own names."""
    folder.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in live_tensors(model).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model.config.save_pretrained(folder)
    return folder


def view(checkpoint):
    return {
        key: (stored.shape, stored.dtype, read_bytes(stored))
        for key, stored in checkpoint.pieces().items()
    }


def check_loaded(folder, model):
    """The model that transformers loads from `folder` holds the bytes that the reader sees."""
    pieces = open_checkpoint(folder).pieces()
    family = open_checkpoint(folder).family
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in live_tensors(loaded).items():
        raw = data(tensor)
        for piece in family.pieces(name, tuple(tensor.shape), len(raw)):
            expected = raw[piece.offset : piece.offset + piece.nbytes]
            assert read_bytes(pieces[piece.key]) == expected, name
            assert data(load_tensor(pieces[piece.key])) == expected, name
    with torch.no_grad():
        assert torch.equal(loaded(INPUT_IDS).logits, model(INPUT_IDS).logits)


@pytest.mark.parametrize("model_type", TINY)
def test_published_and_fused_files_of_one_model_agree(model_type, tmp_path):
    model = tiny_model(model_type)
    sharded = save_published(model, tmp_path / "published", max_shard_size="20KB")
    fused = save_fused(model, tmp_path / "fused")
    ours, theirs = open_checkpoint(sharded), open_checkpoint(fused)
    assert view(ours) == view(theirs)
    assert len(ours.files) > 1
    assert theirs.layout == ("fused" if ours.num_experts else "dense")
    check_loaded(sharded, model)
    check_loaded(fused, model)
