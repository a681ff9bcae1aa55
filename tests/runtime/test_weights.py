"""Streamed weights equal what transformers loads, in every family."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from moegraft.checkpoint import open_checkpoint
from moegraft.errors import CheckpointError, RecipeError, ResourceError
from moegraft.runtime import Host, fit
from moegraft.runtime.load import fill, from_pretrained
from moegraft.runtime.placement import parse_device_map
from moegraft.runtime.weights import same_bits
from tiny_families import TINY, build_tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", TINY)
def test_a_streamed_model_is_the_one_that_transformers_loads(family, dtype, tmp_path, ids):
    build_tiny(family).to(dtype).save_pretrained(tmp_path)
    name = str(dtype).removeprefix("torch.")
    sources = fit.prepare(str(tmp_path), {}, dtype=name, experts="eager")
    assert sources.own is not None
    assert sources.model is not None
    fill(sources.model, sources.own)
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
        for parameter in stock.parameters():
            # In the mapped file they stand at any address, and some kernels round by alignment.
            parameter.data = parameter.data.clone()
        assert torch.equal(sources.model(ids).logits, stock(ids).logits)


def test_a_file_that_was_cut_meanwhile_is_one_clear_error(make_olmoe, tmp_path):
    path = make_olmoe(tmp_path / "a")
    sources = fit.prepare(str(path), {}, dtype="auto", experts="eager")
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100_000])
    assert sources.own is not None
    assert sources.model is not None
    with pytest.raises(CheckpointError, match="truncated since it was opened"):
        fill(sources.model, sources.own)
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        sources.own["lm_head.weight"]


def save_packed(path, seed):
    """A tiny gpt_oss with random MXFP4 experts."""
    sizes = {"hidden_size": 64, "intermediate_size": 32, "head_dim": 32}
    build_tiny("gpt_oss", seed=seed, **sizes).bfloat16().save_pretrained(path)
    random = torch.Generator().manual_seed(seed)
    tensors = load_file(path / "model.safetensors")
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, width, rows = tensors.pop(name).shape
        groups = (experts, rows, width // 32)
        blocks = torch.randint(0, 256, (*groups, 16), dtype=torch.uint8, generator=random)
        scales = torch.randint(118, 122, groups, dtype=torch.uint8, generator=random)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def test_packed_checkpoints_are_decoded_by_transformers_and_still_swap(tmp_path, ids):
    paths = [save_packed(tmp_path / n, seed=s) for s, n in enumerate("ab")]
    host = Host.load(paths[0], {"donor": paths[1]}, device="cpu")
    stock = from_pretrained(open_checkpoint(paths[1]), torch.bfloat16, "eager", CPU)
    ids = ids % 64
    with torch.no_grad(), host.with_patches(host.donor_patches("donor")) as model:
        assert torch.equal(model(ids).logits, stock(ids).logits)
    with pytest.raises(ResourceError, match=r"packed or converted on load, so both must fit: all"):
        Host.load(paths[0], {"donor": paths[1]}, device="cpu", memory_budget_bytes=150_000)
    with pytest.raises(ResourceError, match="donors cannot be streamed"):
        fit.estimate_memory(paths[0], {}, "streamed")


def test_packed_checkpoints_in_pieces_are_whole_ones_but_not_between_cpu_and_gpu(tmp_path, ids):
    path = save_packed(tmp_path, seed=0)
    whole, parts = (
        Host.load(path, {}, **where)
        for where in ({"device": "cpu"}, {"device_map": {"": "cpu", "lm_head": "cpu"}})
    )
    with torch.no_grad():
        assert torch.equal(whole.model(ids % 64).logits, parts.model(ids % 64).logits)
    sources = fit.prepare(path, {}, dtype="auto", experts="eager")
    apart = fit.settle(sources, parse_device_map({"": "cpu", "lm_head": 0}), None)
    assert abs(apart.estimate("resident").host_bytes / whole.memory.host_bytes - 1) < 0.1
    with pytest.raises(RecipeError, match="partly on the CPU and partly on a GPU; name GPUs only"):
        from_pretrained(sources.host, torch.bfloat16, "eager", apart.placement)
