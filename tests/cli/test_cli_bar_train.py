import json

import pytest

from tiny_bar import build_branch_with_chats
from tiny_families import stored_tensors

pytestmark = pytest.mark.filterwarnings(
    # transformers while training; none is ours to mend
    "ignore::FutureWarning",
    "ignore::UserWarning",
)
QUICK = ("--set", "sft.steps=2", "--set", "sft.batch=2", "--set", "sft.length=32")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return build_branch_with_chats(tmp_path_factory.mktemp("train"))


def test_a_dry_run_tells_what_each_stage_opens(moegraft, root):
    what = ("bar", "adapt", "--branch", root / "branch", "--mid", "t.jsonl", "--rl", "r.jsonl")
    code, text, err = moegraft(*what, "--set", "mid.learning_rate=2e-4", "--dry-run")
    assert code == 0, err
    lines = [line.split() for line in text.splitlines() if line.strip()]
    expert = 2 * (3 * 16 * 24 + 16)  # layers of one expert and its router row
    total = sum(tensor.numel() for tensor in stored_tensors(root / "branch").values())
    assert lines[-2][:4] == ["mid", "expert", f"{expert:,}", f"{expert / total:.1%}"]
    assert lines[-1][:3] == ["rl", "shared", f"{total - expert:,}"]
    assert "0.0002 cosine" in text
    code, text, _ = moegraft(*what, "--as-released", "--dry-run", "--json")
    assert [row["opens"] for row in json.loads(text)["plan"]] == ["expert", "everything"]


def test_flags_train_a_branch_that_is_then_verified(moegraft, root, tmp_path):
    what = ("bar", "adapt", "--branch", root / "branch", "--sft", root / "chat.jsonl", *QUICK)
    code, text, err = moegraft(*what, "--device", "cpu", "--out", tmp_path / "run", "--json")
    assert code == 0, err
    assert "stage sft: 2 steps" in err and "nothing that was frozen has moved" in err
    (stage,) = json.loads(text)["stages"]
    assert (stage["stage"], stage["opened"], stage["steps"]) == ("sft", "vocabulary", 2)
    code, text, err = moegraft("bar", "verify", tmp_path / "run" / "branch")
    assert code == 0, err
    assert "branch for 'math', published layout" in text
    assert "frozen   8 tensors, every byte" in text and "(vocabulary)" in text
    code, text, _ = moegraft("bar", "verify", tmp_path / "run" / "branch", "--json")
    assert json.loads(text)["stages"] == ["sft"]


def test_rewards_that_never_differ_are_told(moegraft, root, tmp_path):
    task = {"prompt": "2+2?", "kind": "last_number", "gold": "4000000"}
    (tmp_path / "tasks.jsonl").write_text((json.dumps(task) + "\n") * 4)
    settings = ("steps=1", "batch=4", "generations=2", "mini_batches=1", "length=3")
    flags = [part for setting in settings for part in ("--set", f"rl.{setting}")]
    tasks = ("--rl", tmp_path / "tasks.jsonl")
    out = ("--out", tmp_path / "run")
    code, text, err = moegraft("bar", "adapt", "--branch", root / "branch", *tasks, *flags, *out)
    assert code == 0, err
    told = " ".join(text.split())
    assert "rl: mean reward 0.000 in the first tenth, 0.000 in the last; in 100% of" in told
    assert "teaches nothing; choose tasks that are solved at times" in told


def test_a_recipe_file_says_the_same(moegraft, root, tmp_path):
    recipe = tmp_path / "adapt.yaml"
    recipe.write_text(
        f"branch: {root / 'branch'}\ndevice: cpu\nstages:\n"
        f"- {{stage: sft, data: [{root / 'chat.jsonl'}], steps: 1, batch: 2, length: 32}}\n"
    )
    code, text, err = moegraft("bar", "adapt", recipe, "--out", tmp_path / "run")
    assert code == 0, err
    assert "sft" in text
    code, _, err = moegraft("bar", "adapt", recipe, "--seed", 3, "--out", tmp_path / "run")
    assert code == 2 and "drop --seed or the file" in err
    code, _, err = moegraft("bar", "adapt", recipe)
    assert code == 2 and "expected --out DIR, or --dry-run" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "no stage; expected data with --mid, --sft, --dpo or --rl"),
        (("--sft", "x", "--general", "mid=y"), "expected STAGE=DATA with a stage that has data"),
        (("--sft", "x", "--set", "sft.rate=1"), "stages.0.rate: unknown key"),
        (("--sft", "x", "--set", "rl.steps=1"), "--set rl.steps=1: expected STAGE.KEY=VALUE"),
        (("--sft", "x", "--set", "sft.steps=-1"), "sft: steps: expected more than 0, got -1"),
        (("--sft", "x", "--set", "sft.open=tokens"), "has no new tokens"),
        (("--sft", "x", "--set", "sft.steps"), "--set sft.steps: expected STAGE.KEY=VALUE"),
        (("--sft", "x", "--set", "sft.steps="), "--set sft.steps=: expected STAGE.KEY=VALUE"),
        (("--sft", "x", "--general", "sft"), "sft: data: expected files or data sets, got an emp"),
    ],
)
def test_flags_that_contradict_are_one_clear_line(moegraft, root, flags, message):
    code, _, err = moegraft("bar", "adapt", "--branch", root / "branch", *flags, "--dry-run")
    assert code == 2
    assert message in err.replace("\n", " ") and "Traceback" not in err


def test_a_moved_anchor_is_named(moegraft, root, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(root / "branch")
    with torch.no_grad():
        model.model.layers[0].mlp.experts.gate_up_proj[0] += 1
    model.save_pretrained(tmp_path / "moved")
    code, _, err = moegraft("bar", "verify", tmp_path / "moved", "--original", root / "branch")
    assert code == 2
    assert "model.layers.0.mlp.experts.0.gate_proj.weight is frozen but has moved" in err
    code, _, err = moegraft("bar", "verify", root / "branch", "--tokens", 5)
    assert code == 2 and "--tokens has no effect without --original" in err
