"""Whole models are evaluated into a run directory, resumed, sharded, and read back."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moegraft.compare.evaluate import evaluate_models
from moegraft.compare.imports import read_results
from moegraft.compare.recipe import EvaluationRecipe, claim_run
from moegraft.compare.results import pair
from moegraft.errors import CheckpointError, EvalDataError, RunError
from moegraft.evals.execution import Execution
from moegraft.evals.store import read_rows

TASKS = ("tiny_write", "tiny_choose")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, chat_pair, tiny_tasks):
    run = tmp_path_factory.mktemp("evaluate") / "run"
    recipe = EvaluationRecipe({"old": str(chat_pair[0]), "new": str(chat_pair[1])}, TASKS, limit=5)
    how = Execution(device="cpu", include=(tiny_tasks,))
    assert evaluate_models(recipe, run, how)
    return run, recipe, how


def test_every_model_has_the_same_items_and_prompts(finished):
    run = finished[0]
    assert (run / "DONE").exists()
    paired = pair(read_results(str(run)))
    assert sorted(paired.models) == ["new", "old"]
    assert sorted(one.condition for one in paired.conditions) == sorted(TASKS)
    assert {one.prompts for one in paired.conditions} == {"equal"}
    assert {one.scores.shape for one in paired.conditions} == {(5, 2)}
    env = json.loads((run / "env.json").read_text())
    assert env["models"]["old"]["content"] != env["models"]["new"]["content"]
    assert env["own_prompts"] is False


def test_results_equal_those_of_a_sweep(finished, tmp_path, chat_pair, tiny_tasks):
    from moegraft.sweep.design import SweepRecipe
    from moegraft.sweep.execute import run_sweep

    sweep = tmp_path / "sweep"
    recipe = SweepRecipe(
        *map(str, chat_pair), conditions=TASKS, limit=5, configurations=("router",)
    )
    run_sweep(recipe, sweep, Execution(device="cpu", include=(tiny_tasks,)))
    for model, configuration in (("old", "host"), ("new", "donor")):
        for task in TASKS:
            ours, theirs = (
                {item: (row["score"], row["prompt"]) for item, row in rows.items()}
                for rows in (
                    read_rows(finished[0], model, task),
                    read_rows(sweep, configuration, task),
                )
            )
            assert ours == theirs
    (host,) = read_results(f"{sweep}:host")
    (old,) = read_results(f"deployed={finished[0]}:old")
    assert {one.prompts for one in pair([host, old]).conditions} == {"equal"}


def test_a_finished_run_is_not_evaluated_again_but_grows(finished, chat_pair, tmp_path):
    run, recipe, how = finished
    assert evaluate_models(recipe, run, how, on_progress=lambda now: pytest.fail(str(now)))
    other = EvaluationRecipe({"old": str(chat_pair[1])}, TASKS, limit=5)
    with pytest.raises(RunError, match=r"holds another run: model old was .*; model new was"):
        evaluate_models(other, run, how)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="not empty and holds no run"):
        evaluate_models(recipe, tmp_path, how)


def test_a_mistyped_model_can_be_corrected(tmp_path, tiny_tasks, chat_pair):
    run, old = tmp_path / "run", str(chat_pair[0])
    how = Execution(device="cpu", include=(tiny_tasks,))
    wrong = EvaluationRecipe({"old": "absent"}, TASKS, limit=2)
    with pytest.raises(CheckpointError, match="absent: no such folder"):
        evaluate_models(wrong, run, how)
    assert not run.exists()
    half = EvaluationRecipe({"old": old, "new": "absent"}, TASKS, limit=2)
    with pytest.raises(CheckpointError, match="absent: no such folder"):
        evaluate_models(half, run, how)
    before = read_rows(run, "old", TASKS[0])
    assert len(before) == 2
    right = EvaluationRecipe({"old": old, "new": str(chat_pair[1])}, TASKS, limit=2)
    seen = []
    assert evaluate_models(right, run, how, on_progress=seen.append)
    assert {now.configuration for now in seen} == {"new"}
    assert read_rows(run, "old", TASKS[0]) == before


def test_a_model_of_an_unknown_architecture_runs_as_it_is(tmp_path, tiny_tasks, chat_pair):
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from tiny_sweep import byte_tokenizer

    config = GPTNeoXConfig(
        vocab_size=258,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "dense")
    byte_tokenizer(reverse=True).save_pretrained(tmp_path / "dense")
    models = {"moe": str(chat_pair[0]), "dense": str(tmp_path / "dense")}
    recipe = EvaluationRecipe(models, TASKS, limit=3)
    how = Execution(device="cpu", include=(tiny_tasks,))
    assert evaluate_models(recipe, tmp_path / "run", how)
    paired = pair(read_results(str(tmp_path / "run")))
    assert {one.prompts for one in paired.conditions} == {"own"}
    assert {one.scores.shape for one in paired.conditions} == {(3, 2)}


def test_a_command_goes_on_where_it_stopped(tmp_path, make_command, chat_pair, monkeypatch):
    command = make_command()
    models = {"a": str(chat_pair[0]), "b": str(chat_pair[1])}
    recipe = EvaluationRecipe(models, (str(command),))
    monkeypatch.setenv("FAIL_AFTER", "3")
    with pytest.raises(RunError, match="mine: the command ended with status 1 with 5 of 8 items"):
        evaluate_models(recipe, tmp_path / "run")
    monkeypatch.delenv("FAIL_AFTER")
    assert evaluate_models(recipe, tmp_path / "run")
    asked = (command.parent / "asked.txt").read_text().splitlines()
    assert len(asked) == len(set(asked)) == 16
    whole = tmp_path / "whole"
    evaluate_models(recipe, whole)
    for file in sorted(whole.rglob("items/*/*.jsonl")):
        assert file.read_bytes() == (tmp_path / "run" / file.relative_to(whole)).read_bytes()


def test_a_command_goes_on_after_a_sigkill(tmp_path, make_command, monkeypatch):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    recipe = EvaluationRecipe({"a": str(model)}, (str(make_command()),))
    script = (
        "import sys\nfrom moegraft.compare.evaluate import evaluate_models\n"
        "from moegraft.compare.recipe import EvaluationRecipe\n"
        "evaluate_models(EvaluationRecipe({'a': sys.argv[1]}, (sys.argv[2],)), sys.argv[3])\n"
    )
    arguments = [recipe.models["a"], recipe.conditions[0], str(tmp_path / "run")]
    monkeypatch.setenv("HANG_AFTER", "3")
    with subprocess.Popen([sys.executable, "-c", script, *arguments]) as process:
        while _num_rows(tmp_path / "run") < 3:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    monkeypatch.delenv("HANG_AFTER")
    assert evaluate_models(recipe, tmp_path / "run")
    evaluate_models(recipe, tmp_path / "whole")
    place = Path("items/a/mine.jsonl")
    assert (tmp_path / "run" / place).read_bytes() == (tmp_path / "whole" / place).read_bytes()
    asked = (tmp_path / "command" / "asked.txt").read_text().splitlines()
    assert len(asked) == 16  # eight, of which three before the kill, and eight of the whole run


def _num_rows(run: Path) -> int:
    return sum(file.read_text().count('"score"') for file in run.rglob("*.jsonl"))


def test_shards_of_a_command_make_the_same_run(tmp_path, make_command, chat_pair):
    recipe = EvaluationRecipe({"a": str(chat_pair[0])}, (str(make_command()),), limit=7)
    assert not evaluate_models(recipe, tmp_path / "two", Execution(shard=(1, 2)))
    assert not (tmp_path / "two" / "DONE").exists()
    assert evaluate_models(recipe, tmp_path / "two", Execution(shard=(2, 2)))
    assert evaluate_models(recipe, tmp_path / "one")
    place = Path("items/a/mine.jsonl")
    assert (tmp_path / "two" / place).read_bytes() == (tmp_path / "one" / place).read_bytes()


def test_a_command_is_asked_again_when_the_model_or_the_command_changes(tmp_path, make_command):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    recipe = EvaluationRecipe({"a": str(model)}, (str(make_command()),))
    assert evaluate_models(recipe, tmp_path / "run")
    (model / "config.json").write_text('{"other": 1}')
    (tmp_path / "run" / "DONE").unlink()
    with pytest.raises(RunError, match="made with other ingredients: model was"):
        evaluate_models(recipe, tmp_path / "run")


def test_a_server_is_asked_by_commands_only(tmp_path, make_command):
    url = "http://localhost:8000/v1"
    recipe = EvaluationRecipe({"a": url}, ("tiny_write",))
    with pytest.raises(EvalDataError, match="a server is asked by commands only, not by tiny"):
        evaluate_models(recipe, tmp_path / "run")
    assert evaluate_models(EvaluationRecipe({"a": url}, (str(make_command()),)), tmp_path / "run")
    assert (tmp_path / "command" / "asked.txt").read_text().startswith("v1 ")


def test_a_damaged_record_of_a_run_has_a_way_out(tmp_path):
    recipe = EvaluationRecipe({"old": "a", "new": "b"}, ("task",))
    claim_run(tmp_path, recipe)
    (tmp_path / "env.json").write_text("{")
    with pytest.raises(RunError, match=r"env\.json is missing or damaged; delete it and repeat"):
        claim_run(tmp_path, recipe)
