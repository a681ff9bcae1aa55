"""Branches that look trained: their own expert and router row moved, and what is named."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from moegraft.bar.manifest import read_manifest, write_manifest
from tiny_families import stored_tensors


def train_branch(
    start: Path,
    out: Path,
    *,
    seed: int = 0,
    shared: tuple[str, ...] = (),
    stages: tuple[dict, ...] = ({"stage": "sft", "tokens": 10},),
) -> Path:
    """Save the branch `start` to `out` with expert 1, its router row and `shared` moved."""
    tensors = stored_tensors(start)
    source = torch.Generator().manual_seed(seed)

    def noise(tensor):
        return 0.1 * torch.randn(tensor.shape, generator=source)

    for name, tensor in tensors.items():
        if ".experts.1." in name or name in shared:
            tensor.add_(noise(tensor))
        elif name.endswith(".gate.weight"):
            tensor[1].add_(noise(tensor[1]))
    out.mkdir()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    for file in start.iterdir():
        if "token" in file.name or file.name == "config.json":
            (out / file.name).write_bytes(file.read_bytes())
    manifest = read_manifest(start)
    for stage in stages:
        manifest = manifest.with_stage(stage)
    write_manifest(out, manifest)
    return out
