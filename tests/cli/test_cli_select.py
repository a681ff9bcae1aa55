import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from moegraft.cli import select


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, olmoe_pair) -> Path:
    """The rows of a small run of two tiny checkpoints: experts help in `a`, not in `b`."""
    path = tmp_path_factory.mktemp("runs") / "x"
    for condition, right in (("a/0-shot", 30), ("b", 15)):
        for name in ("host", "donor", "router", "experts", "router+experts"):
            limit = right if name in ("experts", "router+experts") else 15
            rows = [{"item": f"{k:016x}", "score": float(k < limit)} for k in range(60)]
            file = path / "items" / name / f"{condition}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "host": str(olmoe_pair[0]),
        "donor": str(olmoe_pair[1]),
        "preset": "factorial",
        "factors": ["router", "experts"],
        "limit": 60,
        "conditions": ["a/0-shot", "b"],
    }
    (path / "recipe.yaml").write_text(json.dumps(recipe))
    (path / "DONE").write_text("")
    return path


def test_the_table_is_printed_and_the_recipe_is_taken_by_transfer(moegraft, run_dir, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    code, out, err = moegraft("select", run_dir, "--weights", "a=3,b=1", "--out", recipe)
    assert (code, err) == (0, "")
    assert "Best composition" in out
    assert "weighted (a/0-shot 0.75, b 0.25): experts" in out
    assert f"compose: moegraft transfer {recipe} --out DIR" in out
    code, out, err = moegraft("transfer", recipe, "--out", tmp_path / "made", "--json")
    assert code == 0, err
    assert (tmp_path / "made" / "config.json").exists()


def test_sentences_break_between_words_at_the_width_of_the_terminal(moegraft, run_dir, monkeypatch):
    monkeypatch.setattr(select, "stdout_console", lambda: Console(width=80))
    _, out, _ = moegraft("select", run_dir)
    assert max(map(len, out.splitlines())) <= 80


def test_json_holds_table_and_choice(moegraft, run_dir):
    code, out, err = moegraft("select", run_dir, "--condition", "a", "--json")
    assert (code, err) == (0, "")
    content = json.loads(out)
    assert [entry["condition"] for entry in content["table"]] == ["a/0-shot", "b"]
    assert content["choice"]["configuration"] == "experts"
    assert content["choice"]["exceeds"]
    assert content["choice"]["recommended"] == "experts"
    assert content["recipe"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--condition", "c"], "--condition c: no such condition; expected one of: a/0-shot, b"),
        (["--weights", "a"], "--weights a: expected CONDITION=NUMBER"),
        (["--weights", "a=two"], "--weights a=two: expected a number, got 'two'"),
        (["--weights", "a=1,a=2"], "--weights: 'a' is named twice"),
        (["--weights", "a=1", "--condition", "a"], "--condition and --weights: give one of them"),
        (["--budget", "9"], "--budget: has an effect only with --search"),
        (["--search", "--out", "o"], "--search: --condition missing"),
        (["--search", "--condition", "a"], "--search: --out (the folder to make) missing"),
        (["--search", "--weights", "a=1"], "--weights: a search is for one condition"),
        (
            ["--search", "--condition", "a", "--out", "o", "--budget", "9"],
            "select --search: recipe: budget: expected at least",
        ),
        (["--out", "x.yaml"], "--out: say for which condition: --condition or --weights, of: a"),
    ],
)
def test_wrong_input_is_one_line(moegraft, run_dir, arguments, message):
    code, out, err = moegraft("select", run_dir, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_no_run_is_one_line(moegraft, tmp_path):
    assert moegraft("select")[2] == "error: RUN missing: name a run directory, or use --search\n"
    assert "no item results found" in moegraft("select", tmp_path)[2]


def test_a_search_prints_what_it_confirmed_and_writes_a_recipe(
    moegraft, chat_pair, tiny_tasks, tmp_path
):
    host, donor = chat_pair
    asked = ("--search", "--condition", "tiny_choose", "--budget", 700, "--groups", 2)
    where = ("--include", tiny_tasks, "--device", "cpu")
    out = tmp_path / "found"
    code, text, err = moegraft(
        "select", *asked, *where, "--host", host, "--donor", donor, "--out", out
    )
    assert code == 0, err
    assert "Highest gold log-probability" in text
    assert "item evaluations." in text
    choice = json.loads((out / "search.json").read_text())["choice"]
    assert choice["recommended"] == choice["parent"]  # random weights: nothing to gain
    assert f"ship the {choice['parent']}" in text
    assert f"compose all the same: moegraft transfer {out / 'recipe.yaml'} --out DIR" in text
    code, text, err = moegraft("transfer", out / "recipe.yaml", "--out", tmp_path / "made")
    assert code == 0, err

    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(f"host: {host}\ndonor: {donor}\n")
    again = tmp_path / "again"
    code, text, err = moegraft("select", run, *asked, *where, "--out", again, "--json")
    assert code == 0, err
    assert json.loads(text)["choice"] == choice


def test_it_runs_without_torch(run_dir):
    script = (
        "import sys; from moegraft.cli import main\n"
        f"sys.argv = ['moegraft', 'select', {str(run_dir)!r}, '--condition', 'a']\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code\n"
        "assert not {'torch', 'transformers', 'lm_eval'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
