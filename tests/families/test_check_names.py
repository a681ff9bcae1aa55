"""The script that checks published lists of tensor names, on lists made here."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "check_names.py"
NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{layer}.mlp.gate.weight" for layer in range(2)),
    *(f"model.layers.1.mlp.experts.{expert}.up_proj.weight" for expert in range(4)),
]


@pytest.fixture(scope="module")
def check():
    """The script's main function."""
    spec = importlib.util.spec_from_file_location("check_names", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda folder: module.main([str(folder)])


def write(folder: Path, names: list[str], **config: object) -> Path:
    (folder / "some.txt").write_text("\n".join(names))
    if config:
        (folder / "some.config.json").write_text(json.dumps(config))
    return folder


def test_a_list_that_fits_is_counted_by_component(check, tmp_path, capsys):
    sizes = {"num_hidden_layers": 2, "num_experts": 4}
    assert check(write(tmp_path, NAMES, model_type="olmoe", **sizes)) == 0
    shown = capsys.readouterr().out
    assert "family olmoe, 7 of 7 names placed" in shown
    assert "(embedding 1, experts 4, router 2), 0 problems" in shown


def test_without_a_config_the_family_that_knows_most_names_is_taken(check, tmp_path, capsys):
    names = ["model.layers.0.block_sparse_moe.experts.0.w1.weight", "lm_head.weight"]
    assert check(write(tmp_path, names)) == 0
    assert "family mixtral, 2 of 2" in capsys.readouterr().out


def test_unknown_repeated_and_impossible_names_are_problems(check, tmp_path, capsys):
    names = [*NAMES, NAMES[0], "model.layers.0.novel.weight"]
    sizes = {"num_hidden_layers": 1, "num_experts": 3}
    assert check(write(tmp_path, names, model_type="olmoe", **sizes)) == 1
    shown = capsys.readouterr().out
    assert "model.embed_tokens.weight: listed twice" in shown
    assert "'model.layers.0.novel.weight' fits no pattern" in shown
    assert "mlp.gate.weight: layer 1 of 1" in shown
    assert "experts.3.up_proj.weight: expert 3 of 3" in shown


def test_a_folder_without_lists_is_an_error(check, tmp_path):
    assert check(tmp_path) == 2
