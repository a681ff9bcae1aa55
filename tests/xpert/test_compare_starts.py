import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from moegraft.checkpoint import open_checkpoint
from moegraft.config import dump_recipe, load_recipe
from moegraft.errors import IncompatibleError, OutputError, RecipeError, RunError
from moegraft.evals.lock import writer_lock
from moegraft.train.lm import validation_loss
from moegraft.train.loop import METRICS
from moegraft.xpert.arms import ARMS, select_for
from moegraft.xpert.compare import compare_starts, trainings
from moegraft.xpert.compare_recipe import CompareRecipe, Training
from moegraft.xpert.prepare import Prepared
from moegraft.xpert.resize import Resizing
from moegraft.xpert.selection import SELECTION
from moegraft.xpert.windows import FILE
from small_knowledge import select

pytestmark = pytest.mark.filterwarnings(
    # transformers and accelerate while training; none is ours to mend
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore::UserWarning",
)


@pytest.fixture(scope="module")
def recipe(chat_pair, tmp_path_factory):
    data = tmp_path_factory.mktemp("domains")
    (data / "rain.txt").write_text("The rain fell over seven hills and nobody saw it. " * 60)
    records = [{"text": f"{i} and {i} is {2 * i}"} for i in range(120)]
    (data / "sums.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return CompareRecipe(
        donor=str(chat_pair[0]),
        data=(str(data),),
        target={"num_experts": 1, "num_experts_per_tok": 1, "num_hidden_layers": 1},
        arms=("random", "xpert"),
        num_seeds=2,
        top=2,
        training=Training(num_steps=4, batch=2, block=16, warmup_steps=1, eval_every=2),
        validation_blocks=4,
        keep_models=True,
        device="cpu",
    )


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "r"
    steps = []
    return out, compare_starts(recipe, out, on_step=steps.append), steps


def test_every_arm_is_trained_once_for_every_protocol_and_seed(recipe, run):
    out, summary, steps = run
    assert recipe.num_trainings == 8
    assert steps[-1].number == 8 and steps[-1].step == 4
    assert [one.step for one in steps] == [1, 2, 3, 4] * 8
    for protocol, arm, seed in trainings(recipe):
        result = json.loads((out / "results" / protocol / arm / f"seed-{seed}.json").read_text())
        assert [point["step"] for point in result["curve"]] == [0, 2, 4]
        assert {name: len(blocks) for name, blocks in result["blocks"].items()} == {
            name: count // 16 for name, count in summary["validation_tokens"].items()
        }
        ending = AutoModelForCausalLM.from_pretrained(
            out / "models" / protocol / arm / f"seed-{seed}"
        )
        blocks = Prepared(recipe, out).corpus.validation["sums"] if seed else None
        if blocks is not None:
            last = result["curve"][-1]["validation"]["sums"]
            assert validation_loss(ending, blocks) == pytest.approx(last, abs=1e-5)
    assert load_recipe(out / "recipe.yaml", CompareRecipe) == recipe
    assert (out / "DONE").exists()
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))


def test_finished_trainings_are_kept_and_missing_ones_are_made_again_the_same(
    recipe, run, tmp_path
):
    out = shutil.copytree(run[0], tmp_path / "r")
    shutil.rmtree(out / "trainings")
    lost = out / "results" / "trunk" / "xpert" / "seed-1.json"
    lost.unlink()
    shutil.rmtree(out / "models" / "trunk" / "xpert" / "seed-1")
    steps = []
    again = compare_starts(recipe, out, on_step=steps.append)
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(run[1]))
    assert len(steps) == 7 + 4
    assert [folder.parent.name for folder in (out / "trainings").glob("*/*/*")] == ["xpert"]
    with pytest.raises(RunError, match="holds another comparison"):
        compare_starts(CompareRecipe(recipe.donor, recipe.data, recipe.target), out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(OutputError, match="is not empty"):
        compare_starts(recipe, tmp_path / "other")


def test_a_folder_that_cannot_be_written_or_is_written_already_is_one_line(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    for out, message in (("file", "exists and is no folder"), ("file/x", "cannot be opened")):
        with pytest.raises(OutputError, match=message) as raised:
            compare_starts(recipe, tmp_path / out)
        assert "\n" not in str(raised.value)
    with writer_lock(tmp_path / "r", (1, 1)):
        (tmp_path / "r" / "recipe.yaml").write_text(dump_recipe(recipe))
        with pytest.raises(RunError, match="is already writing"):
            compare_starts(recipe, tmp_path / "r")
    assert {file.name for file in (tmp_path / "r").iterdir()} == {"state", "recipe.yaml"}


def test_arms_differ_in_their_ffns_alone(recipe, run, tmp_path):
    ready = Prepared(recipe, run[0])
    for protocol in ("ffn", "trunk"):
        models = [ready.model(protocol, arm, 1).state_dict() for arm in recipe.arms]
        for name, tensor in models[1].items():
            assert torch.equal(tensor, models[0][name]) == (".experts." not in name), name
    fresh, inherited = (ready.model(protocol, "xpert", 0) for protocol in ("ffn", "trunk"))
    assert not torch.equal(fresh.lm_head.weight, inherited.lm_head.weight)
    other = ready.model("ffn", "xpert", 1)
    assert not torch.equal(fresh.lm_head.weight, other.lm_head.weight)  # seeds differ


def test_random_experts_differ_by_seed_and_all_are_all(olmoe_pair):
    donor = open_checkpoint(str(olmoe_pair[0]))
    chosen = {**select(donor, (3, 1)), "num_shared": 0}
    drawn = [select_for(ARMS["random_k"], chosen, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(layer["chosen"]) == 2 for layer in drawn[0]["layers"])
    every = select_for(ARMS["weight_selection"], chosen, 0)
    assert every["num_best"] == 8
    assert [one["expert"] for one in every["layers"][1]["chosen"]] == list(range(8))
    assert select_for(ARMS["xpert"], chosen, 5) == chosen


def test_weight_selection_takes_the_first_layers_where_there_are_enough():
    arm, plain = ARMS["weight_selection"], Resizing(depth="uniform")
    assert arm.resizing(plain, is_shallower=True).depth == "first"
    assert arm.resizing(plain, is_shallower=False).depth == "uniform"
    assert ARMS["xpert"].resizing(plain, is_shallower=True) == plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("xpert",)}, "expected random among them"),
        ({"arms": ("random", "best")}, "arms: expected some of random, matched"),
        ({"protocols": ()}, "protocols: expected some of ffn, trunk"),
        ({"num_seeds": 1}, "num_seeds: expected at least 2, got 1"),
        ({"top": 0}, "top: expected at least 1, got 0"),
        ({"fit_tokens": 0}, "fit_tokens: expected at least 1, got 0"),
        ({"training": Training(block=1)}, "block: expected at least 2 tokens, got 1"),
        ({"training": Training(learning_rate=float("nan"))}, "learning_rate: expected more than"),
        ({"data": ()}, "expected texts of at least one domain"),
        ({"held_out": 0.0}, "held_out: expected a share between 0 and 1"),
        ({"device": "cuda:3"}, "device: expected auto or cpu"),
        ({"training": Training(num_steps=0)}, "num_steps: expected more than 0"),
    ],
)
def test_a_wrong_recipe_is_one_line(changes, message):
    with pytest.raises(RecipeError, match=message):
        CompareRecipe(**({"donor": "x", "data": ("y",), "target": {}} | changes))


def test_a_target_that_does_not_fit_is_found_before_anything_is_written(recipe, tmp_path):
    for changes, error, message in (
        ({"target": {"hidden_act": "gelu"}}, IncompatibleError, "hidden_act is gelu"),
        ({"target": {"num_hidden_layers": 3}}, RecipeError, "first: the target has 3 layers"),
        ({"target": {"tie_word_embeddings": True}}, IncompatibleError, "cannot inherit lm_head"),
        ({"top": 9}, RecipeError, "--top 9"),
        ({"ranks": "17,2,1"}, RecipeError, "rank 17 is larger than"),
        ({"selection": str(tmp_path / "none")}, RecipeError, "none: no readable selection"),
    ):
        with pytest.raises(error, match=message):
            compare_starts(replace(recipe, **changes), tmp_path / "r")
        assert not (tmp_path / "r").exists()


def test_validation_holds_no_document_that_training_has(recipe, run):
    ready = Prepared(recipe, run[0])
    seen = {tuple(text.ids) for text in ready.corpus.texts["sums"]}
    blocks = ready.corpus.validation["sums"]
    end = int(blocks.ids[0, 0])
    held, document = [], []
    for token in blocks.ids.flatten().tolist():
        if token == end:
            held.append(tuple(document))
            document = []
        else:
            document.append(token)
    assert len(seen) > 50 and not seen & set(held)
    assert any(held)


@pytest.mark.slow
def test_two_processes_compare_like_one_and_write_everything_once(recipe, run, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = ["-m", "moegraft", "xpert", "compare", tmp_path / "recipe.yaml"]
    done = subprocess.run(
        [sys.executable, *launch, *command, "--out", tmp_path / "r"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("protocol trunk") == done.stderr.count("32 of 32 steps") == 1
    one, two = run[0], tmp_path / "r"
    for file in (
        SELECTION,
        FILE,
        *(f"knowledge/chosen-tucker/layer-00{n}.safetensors" for n in (0, 1)),
    ):
        assert (two / file).read_bytes() == (one / file).read_bytes(), file
    ours, theirs = (
        {file.relative_to(out) for file in out.rglob("*") if file.is_file()} for out in (two, one)
    )
    written_by_the_command = Counter(file.parts[0] for file in ours - theirs)
    assert written_by_the_command.keys() == {"figures", "report.md"} and not theirs - ours
    for protocol, arm, seed in trainings(recipe):
        place = f"{protocol}/{arm}/seed-{seed}"
        rows = (two / "trainings" / place / METRICS).read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == [0, 2, 4]
        found, expected = (
            json.loads((out / "results" / f"{place}.json").read_text()) for out in (two, one)
        )
        # Gradients are summed over two processes in another order, and AdamW passes rounding on.
        for domain, losses in expected["blocks"].items():
            assert found["blocks"][domain] == pytest.approx(losses, abs=2e-5)
        for point, other in zip(found["curve"], expected["curve"], strict=True):
            assert point["tokens"] == other["tokens"]
            assert point["validation"] == pytest.approx(other["validation"], abs=2e-5)
