"""Variants of tiny checkpoints: other configs, tensors, cards and tokenizers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moegraft.checkpoint import open_checkpoint
from moegraft.transfer import Selection, TransferRecipe, plan_transfer


@pytest.fixture
def vary(tmp_path, olmoe_pair):
    """`vary(name, config={...}, tensors=function, files={...})`: the donor with changes."""

    def make(
        name: str = "varied",
        *,
        source: Path = olmoe_pair[1],
        config: dict | None = None,
        tensors: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = dict,
        files: dict[str, str] | None = None,
    ) -> Path:
        out = tmp_path / name
        out.mkdir()
        found = json.loads((source / "config.json").read_text())
        (out / "config.json").write_text(json.dumps(found | (config or {})))
        held = tensors(load_file(source / "model.safetensors"))
        save_file(held, out / "model.safetensors", {"format": "pt"})
        for file, text in (files or {}).items():
            (out / file).write_text(text)
        return out

    return make


@pytest.fixture
def plan(olmoe_pair):
    """`plan(*components, donor=PATH, layers=..., **recipe)`: the plan of one selection."""

    def make(*components: str, host=olmoe_pair[0], donor=olmoe_pair[1], **options):
        keys = ("layers", "experts", "rule", "weight")
        selection = Selection(components, **{k: options.pop(k) for k in keys if k in options})
        recipe = TransferRecipe(str(host), {"d": str(donor)}, (selection,), **options)
        opened = [open_checkpoint(str(p), unknown=recipe.unknown) for p in (host, donor)]
        return plan_transfer(recipe, opened[0], {"d": opened[1]})

    return make
