"""Started models on downstream tasks: exact records, resuming, arms over seeds."""

import json
import shutil
from dataclasses import replace

import pytest

from moegraft.errors import CheckpointError, EvalDataError, RecipeError, RunError
from moegraft.evals.execution import Execution
from moegraft.evals.harness import load_condition
from moegraft.train.text import IGNORED
from moegraft.xpert.finetune import Finetuning, finetune_arms, table, training_blocks
from tiny_sweep import byte_tokenizer

pytestmark = pytest.mark.filterwarnings(
    # transformers and accelerate while training; none is ours to mend
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore::UserWarning",
)
TASK = """
task: tiny_color
dataset_path: json
dataset_kwargs: {{data_files: {{train: {train}, test: {test}}}}}
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{what}}}} is"
doc_to_choice: ["red", "blue"]
doc_to_target: "{{{{color}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
HOW = Finetuning(
    conditions=("tiny_color",), num_epochs=20.0, batch=4, length=32, learning_rate=1e-2, limit=12
)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    docs = [{"what": f"{w} {i}", "color": c} for i in range(12) for w, c in (("a", 0), ("b", 1))]
    for name, own in (("train", docs), ("test", docs[::-1])):
        text = "".join(json.dumps(doc) + "\n" for doc in own)
        (folder / f"{name}.jsonl").write_text(text)
    files = {name: folder / f"{name}.jsonl" for name in ("train", "test")}
    (folder / "tiny_color.yaml").write_text(TASK.format(**files))
    return folder


@pytest.fixture(scope="module")
def arms(chat_pair):
    one, other = map(str, chat_pair)
    return {"one": [one, one], "other": [other, other]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, arms, tasks):
    out = tmp_path_factory.mktemp("finetuned")
    steps = []
    found = finetune_arms(
        arms,
        HOW,
        out,
        execution=Execution(device="cpu", include=(tasks,)),
        on_step=lambda *step: steps.append(step),
    )
    return out, found, steps


def test_the_loss_is_taken_on_the_answers_of_the_tasks_own_prompts(tasks):
    tokenizer = byte_tokenizer()
    condition = load_condition(
        "tiny_color", tokenizer=tokenizer, include=(tasks,), chat_template=False, training=True
    )
    blocks = training_blocks(condition, tokenizer, 32)
    labels = blocks.labels(slice(None))
    answers = tokenizer.decode(labels[labels != IGNORED])
    assert answers.count(" red") == answers.count(" blue") == 12
    assert len(answers) == 12 * len(" red blue")
    short = training_blocks(condition, tokenizer, 8)  # the end of each record is kept
    kept = short.labels(slice(None))
    assert tokenizer.decode(kept[kept != IGNORED]).count(" blue") == 12


def test_finetuning_teaches_the_task_and_compares_the_arms(finished, arms):
    out, found, steps = finished
    about = found["tasks"]["tiny_color"]
    rows = table(found)
    assert {row["arm"] for row in rows} == {*arms}
    assert [row["score"] for row in rows] == [1.0, 1.0], rows
    assert all(gold > -3.0 for own in about["gold_logprob"]["seeds"].values() for gold in own)
    assert about["comparison"]["arms"] == {
        "one": ["one-0", "one-1"],
        "other": ["other-0", "other-1"],
    }
    assert json.loads((out / "finetuning.json").read_text()) == json.loads(json.dumps(found))
    names = [what for what, done, total in steps if done == total]
    assert names == [f"tiny_color {arm}-{seed}" for arm in arms for seed in (0, 1)]


def test_finished_trainings_and_scores_are_not_repeated(finished, arms, tasks):
    out, found, _ = finished
    again = []
    how = Execution(device="cpu", include=(tasks,))
    same = finetune_arms(arms, HOW, out, execution=how, on_step=lambda *step: again.append(step))
    assert not again and same == found


def test_models_that_were_finetuned_otherwise_are_not_taken_over(finished, arms, tasks):
    out, *_ = finished
    how = Execution(device="cpu", include=(tasks,))
    swapped = dict(zip(arms, reversed(arms.values()), strict=True))
    for others, recipe in ((arms, replace(HOW, learning_rate=1.0)), (swapped, HOW)):
        with pytest.raises(RunError, match=r"holds another finetuning .* name another --out"):
            finetune_arms(others, recipe, out, execution=how)


def test_a_model_that_was_lost_is_read_from_its_last_checkpoint(finished, arms, tasks):
    out, *_ = finished
    folder = out / "models" / "tiny_color" / "one-1"
    before = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder)
    again = []
    how = Execution(device="cpu", include=(tasks,))
    finetune_arms(arms, HOW, out, execution=how, on_step=lambda *step: again.append(step))
    assert not again and (folder / "model.safetensors").read_bytes() == before


def test_bad_arms_and_tasks_are_refused(arms, chat_pair, tasks, tmp_path):
    one = str(chat_pair[0])
    with pytest.raises(RecipeError, match="two arms or more, got 1"):
        finetune_arms({"one": arms["one"]}, HOW, tmp_path)
    with pytest.raises(RecipeError, match="the same number of seeds"):
        finetune_arms({"one": arms["one"], "two": [one]}, HOW, tmp_path)
    for odd in ({"num_epochs": 0.0}, {"learning_rate": float("nan")}, {"limit": 0}):
        with pytest.raises(RecipeError, match=f"{next(iter(odd))}: expected more than 0"):
            Finetuning(("tiny_color",), **odd)
    with pytest.raises(RecipeError, match="at least one task"):
        Finetuning(())
    with pytest.raises(CheckpointError, match="nowhere"):
        finetune_arms({"one": arms["one"], "two": [one, "nowhere"]}, HOW, tmp_path / "out")
    with pytest.raises(RecipeError, match="device 'gpu': expected auto, cpu"):
        finetune_arms(arms, HOW, tmp_path / "out", execution=Execution(device="gpu"))
    assert not (tmp_path / "out").exists()
    untrained = Finetuning(("nano_math",))
    with pytest.raises(EvalDataError, match="names no training split"):
        finetune_arms(arms, untrained, tmp_path / "out")
    assert not (tmp_path / "out" / "models").exists()


def test_every_arm_reads_the_same_records_in_the_same_order(finished):
    out, _, _ = finished
    folders = [out / "training" / "tiny_color" / f"{arm}-0" for arm in ("one", "other")]
    abouts = [json.loads((folder / "training.json").read_text()) for folder in folders]
    assert abouts[0]["data"] == abouts[1]["data"] and abouts[0]["options"] == abouts[1]["options"]
    assert abouts[0]["start"] != abouts[1]["start"]
