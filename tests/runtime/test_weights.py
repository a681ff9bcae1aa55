"""Streamed weights equal what transformers loads, in every family."""

import pytest
import torch

from moegraft.checkpoint import open_checkpoint
from moegraft.errors import CheckpointError
from moegraft.runtime import fit
from moegraft.runtime.load import fill, from_pretrained
from moegraft.runtime.weights import same_bits
from tiny_families import TINY, build_tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", TINY)
def test_a_streamed_model_is_the_one_that_transformers_loads(family, dtype, tmp_path, ids):
    build_tiny(family).to(dtype).save_pretrained(tmp_path)
    name = str(dtype).removeprefix("torch.")
    sources = fit.prepare(str(tmp_path), {}, device=CPU, dtype=name, experts="eager")
    assert sources.own is not None
    fill(sources.model, sources.own, CPU)
    stock = from_pretrained(open_checkpoint(tmp_path), dtype, "eager", CPU)
    ours, theirs = sources.model.state_dict(), stock.state_dict()
    assert list(ours) == list(theirs)
    assert [n for n in ours if not same_bits(ours[n], theirs[n])] == []
    for (n, ours), (m, theirs) in zip(
        sources.model.named_buffers(), stock.named_buffers(), strict=True
    ):
        assert n == m
        assert torch.equal(ours, theirs), n
    assert not sources.model.training
    assert sources.model.generation_config.to_dict() == stock.generation_config.to_dict()
    with torch.no_grad():
        assert torch.equal(sources.model(ids).logits, stock(ids).logits)


def test_a_file_that_was_cut_meanwhile_is_one_clear_error(make_olmoe, tmp_path):
    path = make_olmoe(tmp_path / "a")
    sources = fit.prepare(str(path), {}, device=CPU, dtype="auto", experts="eager")
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100_000])
    assert sources.own is not None
    with pytest.raises(CheckpointError, match="truncated since it was opened"):
        fill(sources.model, sources.own, CPU)
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        sources.own["lm_head.weight"]
