import json
import shutil

import pytest

from moegraft.errors import IncompatibleError, RecipeError, RunError
from moegraft.evals.export import export_samples
from moegraft.evals.lock import writer_lock
from moegraft.evals.store import read_rows
from moegraft.report import summarize
from moegraft.sweep.design import SweepRecipe
from moegraft.sweep.execute import Execution, run_sweep
from tiny_sweep import byte_tokenizer

CONDITIONS = ("tiny_write", "tiny_choose")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, chat_pair, tiny_tasks):
    """A finished run with confirmation, its recipe, execution, and what it told."""
    run = tmp_path_factory.mktemp("sweep") / "run"
    recipe = SweepRecipe(
        *map(str, chat_pair),
        configurations=("attention", "experts"),
        conditions=CONDITIONS,
        limit=6,
        confirm=True,
    )
    told, lengths = [], []

    def on_progress(now):
        told.append(now)
        lengths.append(len(read_rows(run, now.configuration, now.condition, now.kind)))

    how = Execution(device="cpu", include=(tiny_tasks,))
    assert run_sweep(recipe, run, how, on_progress=on_progress)
    return run, recipe, how, told, lengths


def test_every_cell_has_its_items_in_one_order(finished):
    run = finished[0]
    for condition in CONDITIONS:
        orders = {
            tuple(read_rows(run, name, condition))
            for name in ("host", "attention", "experts", "donor")
        }
        assert len(orders) == 1
        assert len(orders.pop()) == 6
    assert (run / "DONE").exists()


def test_a_row_is_on_disk_before_the_next_item_is_scored(finished):
    told, lengths = finished[3:]
    sweep = [n for now, n in zip(told, lengths, strict=True) if now.kind == "items"]
    assert sweep == [*range(1, 7)] * 8
    assert [now.done for now in told if now.kind == "items"] == [*range(1, 49)]
    assert {now.total for now in told if now.kind == "items"} == {48}


def test_the_control_scores_the_host_again_and_agrees(finished):
    run = finished[0]
    for condition in CONDITIONS:
        first = read_rows(run, "host", condition)
        again = read_rows(run, "host", condition, "control")
        assert again.keys() == first.keys()
        for item, row in again.items():
            assert row["gold_logprob"] == pytest.approx(first[item]["gold_logprob"], abs=1e-5)
            assert row["output"] == first[item]["output"]


def test_host_donor_and_the_best_are_confirmed_on_all_items(finished):
    run = finished[0]
    chosen = json.loads((run / "confirm.json").read_text())
    for condition in CONDITIONS:
        best = chosen["best"][condition]
        assert chosen["configurations"][condition] == ["host", best, "donor"]
        for name in ("host", best, "donor"):
            subset, full = (
                read_rows(run, name, condition),
                read_rows(run, name, condition, "confirm"),
            )
            assert len(full) == 24
            assert list(full)[:6] == list(subset)
            assert all(full[item] == row for item, row in subset.items())
    assert sum(now.kind == "confirm" for now in finished[3]) == 2 * 3 * (24 - 6)


def test_the_same_call_on_a_finished_run_does_nothing(finished):
    run, recipe, how = finished[:3]
    before = {path: path.stat().st_mtime_ns for path in (run / "items").rglob("*.jsonl")}
    assert run_sweep(recipe, run, how, on_progress=lambda now: pytest.fail(str(now)))
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_environment_is_recorded(finished, chat_pair):
    env = json.loads((finished[0] / "env.json").read_text())
    assert env["host"] == str(chat_pair[0])
    assert {"torch", "transformers", "lm_eval", "moegraft"} <= env["versions"].keys()
    assert env["checkpoints"]["host"]["content"] != env["checkpoints"]["donor"]["content"]
    assert env["dtype"] == "float32"
    assert env["unpaired_configurations"] == []


def test_another_recipe_is_refused_in_the_same_folder(finished):
    run, recipe, how = finished[:3]
    other = SweepRecipe(recipe.donor, recipe.host, conditions=CONDITIONS, limit=6)
    with pytest.raises(RunError, match="holds another run: host"):
        run_sweep(other, run, how)


def test_a_folder_with_something_else_is_refused(tmp_path, finished):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="not empty and holds no run"):
        run_sweep(finished[1], tmp_path, finished[2])
    assert not (tmp_path / "recipe.yaml").exists()


def test_two_processes_cannot_run_one_shard(finished):
    run, recipe, how = finished[:3]
    with (
        writer_lock(run, (1, 1)),
        pytest.raises(RunError, match="already writing as shard 1/1"),
    ):
        run_sweep(recipe, run, how)


def test_samples_are_exported_in_the_format_of_lm_eval(finished):
    run = finished[0]
    paths = export_samples(run)
    assert len(paths) == 4 * 2
    path = next(one for one in paths if one.parent.name == "experts" and "write" in one.name)
    assert path.name.startswith("samples_tiny_write_")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(samples) == 6
    rows = read_rows(run, "experts", "tiny_write")
    for sample in samples:
        row = rows[sample["item"]]
        assert sample["resps"] == [[row["output"]]]
        assert sample["target"] == row["gold"] == sample["doc"]["c"]
        assert sample["exact_match"] == row["scores"]["exact_match"]
        assert sample["metrics"] == ["exact_match"]
        assert {"doc_hash", "prompt_hash", "target_hash", "filter", "doc_id"} <= sample.keys()


@pytest.fixture
def other_tokenizer(tmp_path, chat_pair):
    """A donor whose tokenizer numbers its tokens differently."""
    donor = tmp_path / "donor"
    shutil.copytree(chat_pair[1], donor)
    byte_tokenizer(reverse=True).save_pretrained(donor)
    return str(chat_pair[0]), str(donor)


def test_a_donor_with_other_token_ids_is_scored_with_its_own_and_marked(
    tmp_path, other_tokenizer, tiny_tasks
):
    recipe = SweepRecipe(
        *other_tokenizer, configurations=("experts",), conditions=("tiny_choose",), limit=3
    )
    notes = []
    how = Execution(device="cpu", include=(tiny_tasks,))
    assert run_sweep(recipe, tmp_path / "run", how, on_note=notes.append)
    assert any("paired tests with it are withheld" in note for note in notes)
    env = json.loads((tmp_path / "run" / "env.json").read_text())
    assert env["unpaired_configurations"] == ["donor"]
    rows = {
        name: read_rows(tmp_path / "run", name, "tiny_choose")
        for name in ("host", "experts", "donor")
    }
    for item, row in rows["host"].items():
        assert row["prompt"] == rows["experts"][item]["prompt"] != rows["donor"][item]["prompt"]


def test_token_embeddings_do_not_move_between_other_token_ids(
    tmp_path, other_tokenizer, tiny_tasks
):
    recipe = SweepRecipe(
        *other_tokenizer, configurations=("rest",), conditions=("tiny_choose",), limit=3
    )
    with pytest.raises(IncompatibleError, match="leave out embedding, lm_head and rest"):
        run_sweep(recipe, tmp_path / "run", Execution(device="cpu", include=(tiny_tasks,)))


def test_sampling_of_the_recipe_reaches_every_cell_and_is_not_binary(
    chat_pair, tiny_tasks, tmp_path
):
    recipe = SweepRecipe(
        *map(str, chat_pair),
        configurations=("experts",),
        conditions=("tiny_write",),
        limit=2,
        repeats=3,
        temperature=0.8,
        max_gen_toks=2,
    )
    assert run_sweep(recipe, tmp_path / "run", Execution(device="cpu", include=(tiny_tasks,)))
    settings = json.loads((tmp_path / "run/env.json").read_text())["conditions"]["tiny_write"]
    assert settings["settings"]["repeats"] == 3
    assert settings["settings"]["decoding"]["temperature"] == 0.8
    for name in ("host", "experts", "donor"):
        rows = read_rows(tmp_path / "run", name, "tiny_write").values()
        assert all(3 <= row["num_tokens"] <= 3 * 2 for row in rows)
    summary = summarize(tmp_path / "run")
    assert [about["binary"] for about in summary["subset"]["conditions"]] == [False]
    with pytest.raises(RecipeError, match=r"temperature: expected at least 0, got -1\.0"):
        SweepRecipe("a", "b", temperature=-1.0)
