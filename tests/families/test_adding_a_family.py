"""Runs the worked example of docs/adding-a-family.md on a real tiny model."""

import re
from pathlib import Path

import pytest

from moegraft.errors import FamilyError
from moegraft.families import find_family, load_family_map
from tiny_families import data, live_tensors, stored_tensors

GUIDE = Path(__file__).parents[2] / "docs" / "adding-a-family.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def ernie(tmp_path_factory):
    """A tiny ERNIE 4.5 in memory and saved as ERNIE, with the guide's family.yaml beside it."""
    from transformers import Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "moe_intermediate_size": 8}
    experts = {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1}
    model = Ernie4_5_MoeForCausalLM(Ernie4_5_MoeConfig(**sizes, **heads, **experts))
    folder = tmp_path_factory.mktemp("guide")
    model.save_pretrained(folder / "ERNIE")
    (folder / "family.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    return model, folder


def test_the_model_of_the_example_needs_the_example(ernie):
    model, _ = ernie
    with pytest.raises(FamilyError, match=r"--map family\.yaml"):
        find_family(model.config.to_dict())


def test_the_example_names_every_tensor_in_both_layouts(ernie):
    model, folder = ernie
    family = find_family(model.config.to_dict(), folder / "family.yaml")
    layouts = []
    for tensors in (stored_tensors(folder / "ERNIE"), live_tensors(model)):
        found = {}
        for name, tensor in tensors.items():
            raw = data(tensor)
            for piece in family.pieces(name, tuple(tensor.shape), len(raw)):
                found[piece.key] = raw[piece.offset : piece.offset + piece.nbytes]
        layouts.append(found)
    assert layouts[0] == layouts[1]
    assert family.num_experts(model.config.to_dict()) == 4
    assert family.top_k(model.config.to_dict()) == 2


def test_the_python_of_the_example_runs(ernie, monkeypatch):
    _, folder = ernie
    monkeypatch.chdir(folder)
    (code,) = blocks("python")
    names: dict = {}
    exec(code, names)
    assert {"router", "experts", "shared_experts", "mlp", "attention"} <= names["components"]
    assert "extra" not in names["components"]


def test_every_yaml_of_the_guide_is_a_family(tmp_path):
    for text in blocks("yaml"):
        path = tmp_path / "family.yaml"
        path.write_text(text, encoding="utf-8")
        assert load_family_map(path).is_moe
