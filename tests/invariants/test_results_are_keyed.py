"""Invariant 12: results are keyed by the contents, prompts and settings that they depend on."""

import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from moegraft.errors import RunError
from moegraft.evals.keys import cell_key, remember_ingredients, row_key
from moegraft.evals.store import read_rows
from moegraft.sweep.design import NamedConfiguration, SweepRecipe, design
from moegraft.sweep.execute import Execution, run_sweep
from moegraft.transfer.recipe import Selection

INGREDIENTS = {
    "components": {"router of layer 0": "aa", "attention of layer 0": "bb"},
    "tokenizer": "t",
    "settings": {"decoding": {"max_new_tokens": 5, "temperature": 0.0}},
    "engine": {"torch": "2.13.0"},
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def host(chat_pair):
    from moegraft.runtime import Host

    return Host.load(str(chat_pair[0]), {"donor": str(chat_pair[1])}, device="cpu")


@pytest.fixture
def copies(tmp_path, chat_pair):
    """Host and donor that a test may change."""
    for path in chat_pair:
        shutil.copytree(path, tmp_path / path.name)
    return tmp_path / "host", tmp_path / "donor"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("components", "router of layer 0"), "ac"),
        (("tokenizer",), "u"),
        (("settings", "decoding", "max_new_tokens"), 6),
        (("engine", "torch"), "2.14.0"),
        (("dtype",), "bfloat16"),
    ],
)
def test_every_ingredient_changes_the_key_and_a_resume_names_it(tmp_path, place, value):
    changed = inner = {**INGREDIENTS}
    for name in place[:-1]:
        inner[name] = {**inner[name]}
        inner = inner[name]
    inner[place[-1]] = value
    assert cell_key(changed) != cell_key(INGREDIENTS)
    remember_ingredients(tmp_path, "host", "t/5-shot", INGREDIENTS)
    remember_ingredients(tmp_path, "host", "t/5-shot", INGREDIENTS)
    with pytest.raises(RunError, match=rf"{'.'.join(place)} was .*, now .*choose another --out"):
        remember_ingredients(tmp_path, "host", "t/5-shot", changed)


def test_the_key_of_a_row_depends_on_its_prompt():
    cell = cell_key(INGREDIENTS)
    assert row_key(cell, "p1") != row_key(cell, "p2")
    assert row_key(cell, "p1") == row_key(cell_key(dict(reversed(INGREDIENTS.items()))), "p1")


def test_a_configuration_is_keyed_by_content_not_by_how_it_was_asked_for(host, chat_pair):
    from moegraft.sweep.cells import component_digests, plan_configurations

    every = Selection(("experts",), experts="0-3", layers="0:2")
    some = Selection(("experts",), experts="0-2")
    mixed = Selection(("experts",), rule="linear", weight=0.5)
    half = Selection(("experts",), layers="0:1")
    asked = [
        NamedConfiguration(name, (one,))
        for name, one in {"every": every, "some": some, "mixed": mixed, "half": half}.items()
    ]
    recipe = SweepRecipe(
        *map(str, chat_pair),
        configurations=("experts", "router+attention+experts+rest", "embedding", *asked),
    )
    made = design(recipe)
    plans = plan_configurations(host, made)
    digests = {one.name: component_digests(host, plans.get(one.name)) for one in made}
    assert digests["every"] == digests["experts"]
    assert digests["router+attention+experts+rest"] == digests["donor"]
    different = ("host", "experts", "some", "mixed", "half", "embedding", "donor")
    assert len({str(digests[name]) for name in different}) == len(different)
    own, theirs = host.component_hashes("host"), host.component_hashes("donor")
    assert digests["half"]["experts of layer 0"] == theirs["experts", 0][:32]
    assert digests["half"]["experts of layer 1"] == own["experts", 1][:32]


def test_results_of_other_weights_are_never_taken_for_these(tmp_path, copies, tiny_tasks):
    run = tmp_path / "run"
    recipe = SweepRecipe(
        *map(str, copies), configurations=("router",), conditions=("tiny_choose",), limit=2
    )
    how = Execution(device="cpu", include=(tiny_tasks,))
    assert run_sweep(recipe, run, how)
    keys = {row["key"] for row in read_rows(run, "host", "tiny_choose").values()}
    assert len(keys) == 2
    (run / "DONE").unlink()
    tensors = load_file(copies[0] / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, copies[0] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"host, tiny_choose: .*components\.norm was "):
        run_sweep(recipe, run, how)


def test_identical_configurations_are_evaluated_once(tmp_path, copies, tiny_tasks):
    tensors = load_file(copies[1] / "model.safetensors")
    same = load_file(copies[0] / "model.safetensors")
    equal = {name: same[name] for name in tensors if ".mlp.gate." in name}
    save_file(tensors | equal, copies[1] / "model.safetensors", metadata={"format": "pt"})
    recipe = SweepRecipe(
        *map(str, copies),
        configurations=("router", "experts", "router+experts"),
        conditions=("tiny_choose",),
        limit=3,
    )
    scored = []
    how = Execution(device="cpu", include=(tiny_tasks,))
    assert run_sweep(recipe, tmp_path / "run", how, on_progress=scored.append)
    told = {one.configuration for one in scored if one.kind == "items"}
    assert told == {"host", "experts", "donor"}
    folder = tmp_path / "run" / "items"
    for one, other in (("router", "host"), ("router+experts", "experts")):
        rows = (folder / one / "tiny_choose.jsonl").read_bytes()
        assert rows == (folder / other / "tiny_choose.jsonl").read_bytes()
    grown = replace(recipe, limit=4)
    scored.clear()
    assert run_sweep(grown, tmp_path / "run", how, on_progress=scored.append)
    assert len(scored) == 3 + 1  # one more item for three configurations, and for the control
    assert len(read_rows(tmp_path / "run", "router", "tiny_choose")) == 4
