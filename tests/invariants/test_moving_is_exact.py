"""Invariant 1: moving to itself changes no byte; moving there and back restores every byte."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from moegraft.checkpoint import open_checkpoint, read_bytes
from moegraft.transfer import Selection, TransferRecipe, apply_plan, plan_transfer
from tiny_families import TINY, build_tiny, live_tensors, tiny_model

ODD_FLOATS = {
    torch.float32: [0x80000000, 0x7FC12345, 0xFFC00001, 0x7F800001, 0x7F800000, 0x00000001],
    torch.bfloat16: [0x8000, 0x7FC1, 0xFFC1, 0x7F81, 0x7F80, 0x0001],
}
"""-0.0, three NaNs with payloads (one of them signalling), infinity, the smallest subnormal."""

SELECTIONS = [
    ("all",),
    ("rest",),
    ("router", "experts"),
    ("attention", "norm", "layers=0"),
    ("experts[3]",),
    ("experts[0-1,5]", "layers=1"),
]


def selection(words: tuple[str, ...]) -> Selection:
    names = tuple(word for word in words if not word.startswith("layers="))
    layers = next((word.removeprefix("layers=") for word in words if "=" in word), None)
    return Selection(names, layers=layers)


def plant(folder: Path, dtype: torch.dtype) -> Path:
    """Write odd floats over the first and last numbers of every tensor."""
    width = dtype.itemsize
    odd = b"".join(bits.to_bytes(width, "little") for bits in ODD_FLOATS[dtype])
    for tensor in open_checkpoint(folder).tensors.values():
        with tensor.file.open("r+b") as stream:
            for position in (tensor.start, tensor.start + tensor.nbytes - len(odd)):
                stream.seek(position)
                stream.write(odd)
    return folder


def fuse(source: Path, out: Path, dtype: torch.dtype) -> Path:
    """The checkpoint in the live module's own names and shapes, odd floats planted anew."""
    model = AutoModelForCausalLM.from_pretrained(source)
    out.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in live_tensors(model).items()}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    model.config.save_pretrained(out)
    return plant(out, dtype)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def pairs(request, tmp_path_factory, make_olmoe):
    """Host and donor in the published layout, and the donor fused too."""
    root, dtype = tmp_path_factory.mktemp("exact"), getattr(torch, request.param)
    paths = {}
    for seed, name in enumerate(("host", "donor")):
        published = make_olmoe(root / name, seed=seed, dtype=request.param)
        paths[name] = plant(published, dtype)
        paths[f"{name}, fused"] = fuse(published, root / f"{name}-fused", dtype)
    return paths


def compose(host: Path, donor: Path, words: tuple[str, ...], out: Path) -> Path:
    recipe = TransferRecipe(str(host), {"d": str(donor)}, (selection(words),))
    opened = open_checkpoint(str(host)), {"d": open_checkpoint(str(donor))}
    return apply_plan(plan_transfer(recipe, *opened), out)


def content(folder: Path) -> dict[str, bytes]:
    return {name: read_bytes(t) for name, t in open_checkpoint(folder).tensors.items()}


@pytest.mark.parametrize("words", SELECTIONS, ids=" ".join)
@pytest.mark.parametrize("layout", ["", ", fused"], ids=["published", "fused"])
def test_moving_a_component_to_itself_changes_no_byte(pairs, words, layout, tmp_path):
    host = pairs[f"host{layout}"]
    twin = tmp_path / "twin"
    twin.mkdir()
    for file in host.iterdir():
        (twin / file.name).write_bytes(file.read_bytes())
    assert content(compose(host, twin, words, tmp_path / "out")) == content(host)


@pytest.mark.parametrize("words", SELECTIONS, ids=" ".join)
@pytest.mark.parametrize("layouts", [("", ""), (", fused", ", fused"), ("", ", fused")])
def test_moving_there_and_back_restores_every_byte(pairs, words, layouts, tmp_path):
    host, donor = pairs[f"host{layouts[0]}"], pairs[f"donor{layouts[1]}"]
    there = compose(host, donor, words, tmp_path / "there")
    assert content(there) != content(host)
    assert content(compose(there, host, words, tmp_path / "back")) == content(host)


@pytest.mark.parametrize("words", SELECTIONS, ids=" ".join)
def test_what_moves_is_the_donors_and_all_else_is_the_hosts(pairs, words, tmp_path):
    host, donor = pairs["host"], pairs["donor, fused"]
    out = open_checkpoint(compose(host, donor, words, tmp_path / "out")).pieces()
    ours, theirs = open_checkpoint(host).pieces(), open_checkpoint(donor).pieces()
    recipe = TransferRecipe(str(host), {"d": str(donor)}, (selection(words),))
    plan = plan_transfer(recipe, open_checkpoint(host), {"d": open_checkpoint(donor)})
    sources = {"host": ours, "d": theirs}
    named = dict.fromkeys(sources, 0)
    for key, stored in out.items():
        source = plan.source(key).name
        named[source] += 1
        assert read_bytes(stored) == read_bytes(sources[source][key]), key
    assert named["d"] == sum(pieces for _, pieces, _ in plan.selection_counts) > 0


@pytest.mark.parametrize("model_type", TINY)
def test_every_family_moves_there_and_back(model_type, tmp_path):
    tiny_model(model_type).save_pretrained(tmp_path / "host", max_shard_size="20KB")
    build_tiny(model_type, seed=5).save_pretrained(tmp_path / "donor")
    host, donor = tmp_path / "host", tmp_path / "donor"
    there = compose(host, donor, ("all",), tmp_path / "there")
    checkpoint = open_checkpoint(there)
    assert [f.name for f in checkpoint.files] == [f.name for f in open_checkpoint(host).files]
    theirs = open_checkpoint(donor).pieces()
    assert all(
        read_bytes(stored) == read_bytes(theirs[key])
        for key, stored in checkpoint.pieces().items()
        if key.component != "extra"
    )
    assert content(compose(there, host, ("all",), tmp_path / "back")) == content(host)
