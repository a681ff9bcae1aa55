import json
import math
import shutil

import pytest
import torch
from safetensors.torch import save_file

from moegraft.bar.record import read_record
from moegraft.bar.route import RouteRecipe, train_routers
from moegraft.bar.tune import Tuning
from moegraft.config import parse_recipe
from moegraft.errors import BranchError, OutputError, RecipeError, TrainDataError, TrainingError
from tiny_bar import card_of
from tiny_families import stored_tensors

FAST = Tuning(epochs=3, learning_rate=0.1, batch=2)


def recipe(merged, chats, **changes):
    settings = {"share": 0.5, "held_out": 0.2, "length": 64, "tuning": FAST} | changes
    return RouteRecipe(str(merged), chats, **settings)


def is_router(name):
    return name.endswith(".mlp.gate.weight")


def test_only_routers_move_and_the_held_out_loss_falls(merged, chats, tmp_path):
    seen = []
    found = train_routers(
        recipe(merged, chats), tmp_path / "r", on_step=lambda *step: seen.append(step)
    )
    before, after = stored_tensors(merged), stored_tensors(tmp_path / "r")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) != is_router(name), name
    untrained, trained = found["rows"]
    assert (untrained["router"], trained["router"]) == ("merged, untrained", "trained")
    assert untrained["k"] == trained["k"] == 3
    assert sum(trained["loss"].values()) < sum(untrained["loss"].values()) - 0.01
    assert set(trained["loss"]) == {"math", "code"}
    assert json.loads((tmp_path / "r" / "route.json").read_text()) == found
    assert seen[-1][0] == "router for k = 3"
    assert seen[-1][1] == seen[-1][2]
    assert not (tmp_path / "r.work").exists()
    tokens = read_record(tmp_path / "r").stages[0]["tokens"]
    card = card_of(tmp_path / "r", ["anchor"], "merge")
    assert f"Its routers were trained on {tokens:,} tokens." in card.text


def test_the_record_tells_what_the_router_was_trained_on(merged, chats, tmp_path):
    found = train_routers(recipe(merged, chats), tmp_path / "r")
    record = read_record(tmp_path / "r")
    (stage,) = record.stages
    assert (stage["stage"], stage["top_k"], stage["share"]) == ("route", 3, 0.5)
    assert stage["tokens"] == stage["steps"] * 2 * 64
    assert stage["flops"] > 0
    assert stage["records"]["math"][2] == 40
    assert found["data"]["records"]["math"]["all"] == 40
    assert record.domains == ("math", "code")
    source = tmp_path / "r" / record.experts[0]["source"]
    assert source.resolve() == (merged.parent / "math").resolve()
    assert (tmp_path / "r" / "divergence.json").is_file()
    with pytest.raises(OutputError, match="holds routers of another recipe"):
        train_routers(recipe(merged, chats, share=0.6), tmp_path / "r")
    assert train_routers(recipe(merged, chats), tmp_path / "r") == found


def test_a_finished_training_of_another_model_or_other_data_is_not_taken_for_this_one(
    merged, chats, tmp_path
):
    model, file = tmp_path / "merged", tmp_path / "math.jsonl"
    shutil.copytree(merged, model)
    shutil.copyfile(chats["math"], file)
    asked = recipe(model, {"math": str(file)}, tuning=Tuning(epochs=1, batch=8))
    train_routers(asked, tmp_path / "r")
    text = file.read_text()
    file.write_text(text.replace("math", "maths"))
    with pytest.raises(OutputError, match="r: holds routers of another data; name another"):
        train_routers(asked, tmp_path / "r")
    file.write_text(text)
    tensors = stored_tensors(model)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OutputError, match="r: holds routers of another model; name another"):
        train_routers(asked, tmp_path / "r")


def test_an_output_that_cannot_be_made_is_refused_before_the_training(merged, chats, tmp_path):
    seen = []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    for out, message in (
        (tmp_path / "full", "exists and is not empty"),
        (merged / "inside", "lies inside the input"),
        (merged, "the output is the input"),
    ):
        with pytest.raises(OutputError, match=message):
            train_routers(recipe(merged, chats), out, on_step=lambda *now: seen.append(now))
    assert not seen and not (tmp_path / "full.work").exists()


def test_a_router_is_trained_for_each_k_from_the_merged_rows(merged, chats, tmp_path):
    found = train_routers(recipe(merged, chats, top_k=(3, 1)), tmp_path / "r")
    assert [row["k"] for row in found["rows"]] == [3, 3, 1, 1]
    alone = train_routers(recipe(merged, chats, top_k=(1,)), tmp_path / "one")
    assert found["rows"][2:] == alone["rows"]
    for k in (3, 1):
        config = json.loads((tmp_path / "r" / f"k-{k}" / "config.json").read_text())
        assert config["num_experts_per_tok"] == k
    routers = [
        {n: t for n, t in stored_tensors(tmp_path / "r" / f"k-{k}").items() if is_router(n)}
        for k in (3, 1)
    ]
    assert not all(torch.equal(routers[0][name], routers[1][name]) for name in routers[0])
    profile = found["routing"]["1"]
    assert profile["domains"] == ["math", "code"]
    assert profile["top_k"] == 1


def test_an_interrupted_training_ends_as_an_uninterrupted_one(merged, chats, tmp_path):
    tuning = Tuning(epochs=2, learning_rate=0.1, batch=2, save_every=3)
    whole = train_routers(recipe(merged, chats, tuning=tuning), tmp_path / "whole")

    class CutError(Exception):
        pass

    def cut(_what, done, _total):
        if done == 7:
            raise CutError

    with pytest.raises(CutError):
        train_routers(recipe(merged, chats, tuning=tuning), tmp_path / "r", on_step=cut)
    assert not (tmp_path / "r").exists()
    found = train_routers(recipe(merged, chats, tuning=tuning), tmp_path / "r")
    assert found["rows"] == whole["rows"]
    ours, theirs = stored_tensors(tmp_path / "r"), stored_tensors(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_empty_or_missing_domain_is_named(merged, chats, tmp_path):
    empty, one = tmp_path / "empty.jsonl", tmp_path / "one.jsonl"
    empty.write_text("")
    one.write_text('{"prompt": "a", "completion": "b"}\n')
    for source, message in (
        (empty, "domain 'tool': .*empty.jsonl holds no record"),
        (one, "domain 'tool': .*one.jsonl holds 1 records, expected two different ones"),
        (tmp_path / "no.jsonl", "no such file"),
    ):
        with pytest.raises(TrainDataError, match=message):
            train_routers(recipe(merged, {**chats, "tool": str(source)}), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(merged, chats, tmp_path):
    tuning = Tuning(learning_rate=1e30, batch=2, save_every=1, warmup=0.0)
    with pytest.raises(TrainingError, match=r"step \d: the .* is not a finite number.*checkpoint-"):
        train_routers(recipe(merged, chats, tuning=tuning), tmp_path / "r")
    assert not (tmp_path / "r").exists()
    assert [*(tmp_path / "r.work" / "k-3").glob("checkpoint-*/COMPLETE")]


def test_what_cannot_be_routed_is_refused(merged, chats, tmp_path, monkeypatch):
    with pytest.raises(BranchError, match=r"top_k 4: .* has 3 experts"):
        train_routers(recipe(merged, chats, top_k=(4,)), tmp_path / "r")
    with pytest.raises(BranchError, match="expected float32, bfloat16 or auto"):
        train_routers(recipe(merged, chats), tmp_path / "r", dtype="int8")
    with pytest.raises(BranchError, match="is a dense model, which has no routers to train"):
        train_routers(recipe(merged.parent / "anchor", chats), tmp_path / "r")
    with monkeypatch.context() as two:
        two.setenv("WORLD_SIZE", "2")
        with pytest.raises(RecipeError, match="routers are trained in one process"):
            train_routers(recipe(merged, chats), tmp_path / "r")
    base = {"model": "m", "data": {"a": "b"}}
    for change, message in (
        ({"share": 0}, "share: expected a share above 0"),
        ({"data": {}}, "data: expected at least one"),
        ({"top_k": [2, 2]}, "top_k: a number stands twice"),
        ({"data": {"math": ""}}, "data: expected at least one NAME=SOURCE, neither"),
        ({"tuning": {"epoch": 2}}, "tuning.epoch: unknown key"),
        ({"tuning": {"epochs": 0}}, "tuning: epochs: expected more than 0, got 0"),
        ({"tuning": {"learning_rate": math.inf}}, "learning_rate: expected more than 0, got inf"),
        ({"tuning": {"z": math.nan}}, "z: expected 0 or more, got nan"),
        ({"tuning": {"seed": -1}}, "seed: expected 0 or more, got -1"),
    ):
        with pytest.raises(RecipeError, match=message):
            parse_recipe(base | change, RouteRecipe, where="route")


def test_the_papers_batch_is_used_where_there_is_data_for_it():
    paper = Tuning().options(num_blocks=21120, length=2048, use_cpu=True)
    assert (paper.batch, paper.num_steps, paper.warmup_steps) == (640, 66, 2)
    small = Tuning().options(num_blocks=330, length=2048, use_cpu=True)
    assert (small.batch, small.num_steps) == (10, 66)
    tiny = Tuning().options(num_blocks=5, length=2048, use_cpu=True)
    assert (tiny.batch, tiny.num_steps) == (1, 10)
    assert (paper.learning_rate, paper.betas, paper.weight_decay) == (1e-4, (0.9, 0.95), 0.0)
