"""The commands as a user runs them: output, exit codes, widths, and what is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moegraft.checkpoint import open_checkpoint
from moegraft.cli.app import app
from moegraft.errors import RecipeError

RECIPES = Path(__file__).parents[2] / "examples"


def run(*words, width=80):
    result = CliRunner().invoke(app, [str(w) for w in words], env={"COLUMNS": str(width)})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def flags(olmoe_pair):
    return ("transfer", "--host", olmoe_pair[0], "--donor", olmoe_pair[1])


def test_flags_and_recipe_write_the_same_bytes(flags, olmoe_pair, tmp_path):
    what = ("--components", "experts[0-2,5],router", "--layers", "1:2")
    assert run(*flags, *what, "--out", tmp_path / "a").exit_code == 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"host: {olmoe_pair[0]}\ndonors: {{rlvr: {olmoe_pair[1]}}}\n"
        'selections: [{components: ["experts[0-2,5]", router], layers: "1:2"}]\n'
    )
    assert run("transfer", recipe, "--out", tmp_path / "b", "--verify").exit_code == 0
    hashes = [open_checkpoint(tmp_path / n).content_hashes() for n in "ab"]
    assert hashes[0] == hashes[1]


def test_a_dry_run_prints_the_plan_and_writes_nothing(flags, tmp_path):
    result = run(*flags, "--components", "router", "--out", tmp_path / "o", "--dry-run")
    assert "router" in result.stdout
    assert "byte ranges" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_json_is_all_there_is_on_stdout(flags, olmoe_pair, tmp_path):
    result = run(*flags, "--components", "all", "--out", tmp_path / "o", "--json")
    assert json.loads(result.stdout)["byte_ranges"] == 1
    assert json.loads(run("inspect", olmoe_pair[0], "--json").stdout)["tensors"] == 69
    found = json.loads(run("diff", *olmoe_pair, "--json").stdout)
    assert found["transferable"] is True
    assert {row["layer"] for row in found["distances"]} == {None, 0, 1}


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(flags, olmoe_pair, width):
    outputs = [
        run("inspect", olmoe_pair[0], width=width),
        run("diff", *olmoe_pair, "--layers", width=width),
        run(*flags, "--components", "experts[0-3],attention", "--dry-run", width=width),
    ]
    for result in outputs:
        lines = result.stdout.splitlines()
        named = ("host", "donor", str(olmoe_pair[0]))
        assert max(len(x) for x in lines if not x.startswith(named)) <= width
        assert "…" not in result.stdout
        assert "experts" in result.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--components", "expert", "--dry-run"], "did you mean 'experts'"),
        (["--components", "router"], "expected --out DIR, or --dry-run"),
        (["--dry-run"], "expected a recipe file, or --components"),
        (["--components", "router", "--dry-run", "--unknown", "x"], "'error' or 'host'"),
        (["--components", "router", "--push", "x", "--out", "o"], "expected the name of a Hub"),
        (["--components", "router", "--layers", "9", "--dry-run"], "9 is out of range"),
        (["recipe.yaml", "--components", "router", "--dry-run"], "drop --host or the file"),
        (["--components", "experts[0", "--dry-run"], r"unknown component 'experts\[0'"),
    ],
)
def test_a_bad_command_is_one_clear_line(flags, words, says):
    with pytest.raises(RecipeError, match=says):
        run(*flags, *words)


def test_an_option_without_effect_is_warned_about(flags):
    result = run(*flags, "--components", "router", "--dry-run", "--verify")
    assert "warning: --verify has no effect with --dry-run" in result.stderr


def test_common_options_override_the_recipe(olmoe_pair, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"host: {olmoe_pair[0]}\ndonors: {{d: {olmoe_pair[1]}}}\nlicence: mit\n"
        "selections: [{components: [router]}]\n"
    )
    result = run("transfer", recipe, "--licence", "cc0-1.0", "--dry-run", "--json")
    assert json.loads(result.stdout)["licence"] == "cc0-1.0"


def test_the_example_recipe_is_valid():
    from moegraft.config import load_recipe
    from moegraft.transfer import TransferRecipe

    recipe = load_recipe(RECIPES / "transfer.yaml", TransferRecipe)
    assert recipe.donors
    assert recipe.selections


def test_whole_tensors_move_without_torch_or_transformers(flags, olmoe_pair, tmp_path):
    commands = [
        ("inspect", olmoe_pair[0]),
        ("diff", *olmoe_pair),
        (*flags, "--components", "experts[1],attention", "--out", tmp_path / "o", "--verify"),
    ]
    script = (
        "import sys\nfrom moegraft.cli.app import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'scipy'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    for words in commands:
        subprocess.run(
            [sys.executable, "-c", script, *map(str, words)],
            check=True,
            timeout=120,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"COLUMNS": "80"},
        )
    assert (tmp_path / "o/model.safetensors").exists()
