import json
from itertools import pairwise
from statistics import mean

import pytest
import torch

from moegraft.bar.adapt import adapt
from moegraft.bar.append import plan_append, write_append
from moegraft.bar.branch import BranchRecipe, plan_branch, write_branch
from moegraft.bar.manifest import read_manifest
from moegraft.bar.stages import LEAST_STEPS, PRESETS, AdaptRecipe, StageRecipe
from moegraft.bar.training import plan_blocks
from moegraft.errors import (
    BranchError,
    RecipeError,
    RunError,
    TrainDataError,
    TrainingError,
)
from moegraft.train.loop import read_metrics
from tiny_bar import card_of
from tiny_families import build_tiny, data, stored_tensors
from tiny_sweep import CHAT, byte_tokenizer

pytestmark = pytest.mark.filterwarnings(
    # transformers and TRL while training; none is ours to mend
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore::UserWarning",
)
QUICK = {"steps": 2, "batch": 2, "length": 32, "learning_rate": 1e-2, "warmup_share": 0.0}
LENGTH = "def length(response, gold):\n    return len(set(response)) / 8\n"


def _write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A branch and the data of its domain (read only)."""
    root = tmp_path_factory.mktemp("adapt")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    for family, sizes in (("olmo2", {}), ("llama", {"attention_bias": False, "mlp_bias": False})):
        model = build_tiny(family, vocab_size=258, **sizes)
        model.save_pretrained(root / family)
        tokenizer.save_pretrained(root / family)
        recipe = BranchRecipe(str(root / family), "math", new_tokens=("<|call|>",))
        write_branch(plan_branch(recipe), root / f"{family}-branch")
    build_tiny("olmo2", vocab_size=258).save_pretrained(root / "bare")
    write_branch(plan_branch(BranchRecipe(str(root / "bare"), "math")), root / "bare-branch")
    _write(root / "text.jsonl", [{"text": f"{n} and {n} are {2 * n}"} for n in range(40)])
    turns = [(f"{n}+{n}?", f"<|call|>{2 * n}") for n in range(20)]
    _write(root / "chat.jsonl", [{"prompt": a, "completion": b} for a, b in turns])
    _write(root / "general.jsonl", [{"prompt": "hi", "completion": "hello"}] * 8)
    _write(
        root / "pairs.jsonl",
        [{"prompt": a, "chosen": b, "rejected": "no"} for a, b in turns],
    )
    tasks = [{"prompt": a, "kind": "mine:length", "gold": ""} for a, _ in turns]
    _write(root / "tasks.jsonl", tasks)
    (root / "mine.py").write_text(LENGTH)
    (root / "empty.jsonl").write_text("")
    return root


def _stage(places, stage, **more):
    file = {"mid": "text", "sft": "chat", "dpo": "pairs", "rl": "tasks"}[stage]
    settings = {**QUICK, "data": (str(places / f"{file}.jsonl"),), **more}
    if stage == "rl":
        settings |= {"batch": 4, "generations": 4, "mini_batches": 1, "length": 6, **more}
    return StageRecipe(stage=stage, **settings)


def _recipe(places, *stages, family="olmo2", **more):
    return AdaptRecipe(str(places / f"{family}-branch"), stages, device="cpu", **more)


def _moved(before, after):
    """Names whose bytes differ; rows of the router and of the vocabulary as NAME[row]."""
    found = set()
    assert before.keys() == after.keys()
    for name, old in before.items():
        new = after[name]
        if "gate.weight" in name:
            found |= {f"{name}[{r}]" for r in range(2) if data(old[r]) != data(new[r])}
        elif data(old) != data(new):
            found.add(name)
    return found


def _expert(names, expert):
    marks = (f"experts.{expert}.", f"gate.weight[{expert}]")
    return {name for name in names if any(mark in name for mark in marks)}


@pytest.mark.parametrize("family", ["olmo2", "llama"])
def test_each_stage_opens_what_the_paper_says_and_records_it(family, places, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(places), prepend=":")
    stages = [_stage(places, stage) for stage in ("mid", "sft", "dpo", "rl")]
    seen = []
    recipe = _recipe(places, *stages, family=family)
    manifest = adapt(recipe, tmp_path / "run", on_step=lambda *now: seen.append(now))
    assert seen == [(s, n, 2) for s in ("mid", "sft", "dpo", "rl") for n in (1, 2)]
    folders = [places / f"{family}-branch"]
    folders += [tmp_path / f"run/stages/{n}/branch" for n in ("1-mid", "2-sft", "3-dpo")]
    held = [stored_tensors(folder) for folder in (*folders, tmp_path / "run/branch")]
    mid, sft, dpo, rl = (_moved(a, b) for a, b in pairwise(held))
    vocabulary = {"model.embed_tokens.weight", "lm_head.weight"}
    assert mid == _expert(mid, 1) and len(mid) == 2 * (3 + 1)
    assert sft - vocabulary == mid and vocabulary <= sft
    assert dpo - vocabulary <= mid and dpo
    assert any("self_attn" in name for name in rl) and any("norm" in name for name in rl)
    assert not _expert(mid | sft | dpo | rl, 0)
    assert manifest == read_manifest(tmp_path / "run/branch")
    card = card_of(tmp_path / "run/branch", [family], "finetune")
    assert "| mid | expert | 2 | 128 | text.jsonl |" in card.text
    assert [stage["stage"] for stage in manifest.stages] == ["mid", "sft", "dpo", "rl"]
    assert [stage["opened"] for stage in manifest.stages] == [
        *("expert", "vocabulary", "vocabulary", "shared")
    ]
    assert manifest.stages[0]["tokens"] == 2 * 2 * 32
    assert all(stage["tokens"] > 0 and stage["steps"] == 2 for stage in manifest.stages)
    assert manifest.stages[3]["rollouts"] == 8
    rows = read_metrics(tmp_path / "run/stages/4-rl/train")
    first, last = (row["rewards/answer_reward/mean"] for row in rows)
    found = [manifest.stages[3][name] for name in ("reward_at_first", "reward")]
    assert found == pytest.approx([first, last], abs=1e-6) and first > 0
    assert manifest.stages[3]["groups_alike"] == mean(r["frac_reward_zero_std"] for r in rows)
    assert manifest.stages[0]["data"][0]["sources"] == ["text.jsonl"]
    assert str(places) not in (tmp_path / "run/branch/branch.json").read_text()
    done = []
    adapt(recipe, tmp_path / "run", on_step=lambda *now: done.append(now))
    assert not done  # a finished run is not repeated
    with pytest.raises(RunError, match="holds a run of another recipe"):
        adapt(_recipe(places, stages[0], family=family), tmp_path / "run")


def test_an_interrupted_run_ends_with_the_same_bytes(places, tmp_path):
    stages = [_stage(places, stage, steps=4, save_every=1) for stage in ("mid", "sft")]
    recipe = _recipe(places, *stages)

    class PowerCutError(Exception):
        pass

    def cut(stage, done, _total):
        if (stage, done) == ("sft", 3):
            raise PowerCutError

    with pytest.raises(PowerCutError):
        adapt(recipe, tmp_path / "cut", on_step=cut)
    seen = []
    adapt(recipe, tmp_path / "cut", on_step=lambda *now: seen.append(now))
    assert seen == [("sft", 3, 4), ("sft", 4, 4)]
    adapt(recipe, tmp_path / "whole")
    cut_run, whole = (stored_tensors(tmp_path / name / "branch") for name in ("cut", "whole"))
    assert not _moved(cut_run, whole)
    rows = [read_metrics(tmp_path / name / "stages/2-sft/train") for name in ("cut", "whole")]
    losses = [[(row["step"], row["loss"]) for row in one] for one in rows]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_as_released_opens_what_the_scripts_open(places, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(places), prepend=":")
    recipe = _recipe(places, _stage(places, "rl"), as_released=True)
    manifest = adapt(recipe, tmp_path / "run")
    moved = _moved(stored_tensors(places / "olmo2-branch"), stored_tensors(tmp_path / "run/branch"))
    assert len(_expert(moved, 0)) == 2 * (3 + 1)
    assert manifest.stages[0]["opened"] == "everything"
    again = AdaptRecipe(str(tmp_path / "run/branch"), (_stage(places, "mid"),), device="cpu")
    with pytest.raises(BranchError, match=r"is frozen but has moved since the branch was made"):
        adapt(again, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    released = AdaptRecipe(
        str(tmp_path / "run/branch"), (_stage(places, "mid"),), as_released=True, device="cpu"
    )
    assert [s["stage"] for s in adapt(released, tmp_path / "more").stages] == ["rl", "mid"]


def test_a_branch_of_a_moe_trains_its_appended_expert_alone(places, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(places), prepend=":")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    build_tiny("olmoe", vocab_size=258, hidden_size=64).save_pretrained(tmp_path / "host")
    tokenizer.save_pretrained(tmp_path / "host")
    start = tmp_path / "branch"
    recipe = BranchRecipe(
        str(tmp_path / "host"), "math", new_tokens=("<|call|>",), toward=str(places / "text.jsonl")
    )
    write_append(plan_append(recipe), start)
    stages = tuple(_stage(places, stage, weight_decay=0.1) for stage in ("mid", "sft", "rl"))
    manifest = adapt(AdaptRecipe(str(start), stages, device="cpu"), tmp_path / "run")
    assert [stage["opened"] for stage in manifest.stages] == ["expert", "tokens", "tokens"]
    before, after = stored_tensors(start), stored_tensors(tmp_path / "run/branch")
    new = manifest.tokens["<|call|>"]
    for name, old in before.items():
        if ".experts.4." in name:
            continue
        rows = {"gate": 4, "embed_": new, "lm_hea": new}.get(name.split(".")[-2][:6])
        kept = [row for row in range(len(old)) if row != rows]
        assert data(old[kept]) == data(after[name][kept]), name
    gate = "model.layers.0.mlp.gate.weight"
    assert data(before[gate][4]) != data(after[gate][4])
    assert data(before["lm_head.weight"][new]) != data(after["lm_head.weight"][new])
    with pytest.raises(RecipeError, match=r"open: shared: .* whose old tensors stay frozen"):
        wider = _stage(places, "mid", open="shared")
        adapt(AdaptRecipe(str(start), (wider,), device="cpu"), tmp_path / "other")


def test_what_several_processes_cannot_do_is_refused(places, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="stage rl runs in one process; mid and sft are"):
        adapt(_recipe(places, _stage(places, "rl")), tmp_path / "run")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RecipeError, match=r"whole model in each process.* with FSDP; shard in"):
        adapt(_recipe(places, _stage(places, "mid")), tmp_path / "run")
    assert plan_blocks(StageRecipe("mid", ("x",)), {"domain": 1000}, 100)[1] == 2


def test_only_the_rows_of_new_tokens_can_be_opened(places, tmp_path):
    recipe = _recipe(places, _stage(places, "sft", open="tokens", weight_decay=0.1))
    adapt(recipe, tmp_path / "run")
    before = stored_tensors(places / "olmo2-branch")
    after = stored_tensors(tmp_path / "run/branch")
    new = read_manifest(places / "olmo2-branch").tokens["<|call|>"]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = (before[name] != after[name]).any(1).nonzero().flatten().tolist()
        assert rows == [new]


def test_low_rank_training_is_folded_into_the_domain_expert(places, tmp_path):
    recipe = _recipe(places, _stage(places, "mid", lora=2))
    manifest = adapt(recipe, tmp_path / "run")
    before = stored_tensors(places / "olmo2-branch")
    after = stored_tensors(tmp_path / "run/branch")
    moved = _moved(before, after)
    assert moved == _expert(moved, 1) and len(moved) == 2 * (3 + 1)
    name = "model.layers.0.mlp.experts.1.down_proj.weight"
    assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) == 2
    assert manifest.stages[0]["lora"] == 2
    assert manifest.stages[0]["trained_numbers"] < 2 * 3 * 16 * 24


def test_general_data_come_in_their_share(places, tmp_path):
    general = (str(places / "general.jsonl"),)
    stage = _stage(places, "sft", general=general, general_share=0.5)
    manifest = adapt(_recipe(places, stage), tmp_path / "run")
    assert [entry["part"] for entry in manifest.stages[0]["data"]] == ["domain", "general"]
    assert manifest.stages[0]["data"][1]["sources"] == ["general.jsonl"]
    assert manifest.stages[0]["general_share"] == 0.5


def test_steps_and_batches_follow_from_tokens():
    recipe = StageRecipe("mid", ("x",))
    big = {"domain": 50_000_000_000}
    steps, batch = plan_blocks(recipe, big, 8192)
    assert batch == 128 and abs(steps - 47_684) < 1
    assert recipe.options(steps, batch).warmup_steps == 2000
    steps, batch = plan_blocks(recipe, {"domain": 1_000_000}, 512)
    assert steps >= LEAST_STEPS and batch * 512 * steps == pytest.approx(1_000_000, rel=0.1)
    mixed = {"domain": 400_000, "general": 400_000}
    sft = StageRecipe("sft", ("x",), ("y",), batch=1)
    assert plan_blocks(sft, mixed, 400) == (2 * 2000, 1)
    assert plan_blocks(StageRecipe("sft", ("x",), ("y",), 0.75, batch=1), mixed, 400)[0] == 8000
    assert plan_blocks(StageRecipe("sft", ("x",), steps=7), mixed, 400)[0] == 7
    rl = StageRecipe("rl", ("x",))
    assert rl.options(300, 128).learning_rate == PRESETS["rl"].learning_rate == 6e-7
    assert rl.options(300, 128).save_every % rl.mini_batches == 0


@pytest.mark.parametrize(
    ("stage", "more", "error", "message"),
    [
        (
            "mid",
            {"data": ("empty.jsonl",)},
            TrainDataError,
            r"stage mid: .*jsonl: holds no record",
        ),
        ("sft", {"length": 8}, TrainDataError, "stage sft: no chat has an answer within 8"),
        ("rl", {"data": ("empty.jsonl",)}, TrainDataError, "stage rl: .*: holds no record"),
        ("dpo", {"data": ("chat.jsonl",)}, TrainDataError, "stage dpo: .*record 1: expected `pro"),
        ("sft", {"data": ("gone.jsonl",)}, TrainDataError, "stage sft: .*no such file or folder"),
        ("mid", {"learning_rate": 1e30}, TrainingError, r"stage mid: step 2: the .*checkpoint-1\."),
    ],
)
def test_a_stage_that_cannot_be_trained_is_named(places, tmp_path, stage, more, error, message):  # noqa: PLR0917
    if "data" in more:
        more = {"data": tuple(str(places / name) for name in more["data"])}
    with pytest.raises(error, match=message):
        adapt(_recipe(places, _stage(places, stage, save_every=1, **more)), tmp_path / "run")
    assert not (tmp_path / "run/branch").exists()


def test_a_branch_without_a_tokenizer_is_refused(places, tmp_path):
    recipe = _recipe(places, _stage(places, "mid"), family="bare")
    with pytest.raises(BranchError, match="has no tokenizer"):
        adapt(recipe, tmp_path / "run")
    tokens = _recipe(places, _stage(places, "mid", open="tokens"), family="bare")
    with pytest.raises(RecipeError, match=r"open: tokens: the branch .* has no new tokens"):
        adapt(tokens, tmp_path / "other")
