import json
import os
import subprocess
import sys

import pytest
import torch

from moegraft.bar.adapt import adapt
from moegraft.bar.branch import BranchRecipe, plan_branch, write_branch
from moegraft.bar.manifest import read_manifest
from moegraft.bar.stages import AdaptRecipe
from moegraft.config import load_recipe
from moegraft.train.loop import read_metrics
from tiny_families import build_tiny, data, stored_tensors
from tiny_sweep import CHAT, byte_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]


def test_two_processes_train_a_branch_like_one(tmp_path):
    build_tiny("olmo2", vocab_size=258).save_pretrained(tmp_path / "anchor")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(tmp_path / "anchor")
    write_branch(plan_branch(BranchRecipe(str(tmp_path / "anchor"), "math")), tmp_path / "branch")
    chats = [json.dumps({"prompt": f"{n}+{n}?", "completion": str(2 * n)}) for n in range(20)]
    (tmp_path / "chat.jsonl").write_text("\n".join(chats))
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": c}) for c in chats))
    quick = "steps: 3, batch: 4, learning_rate: 0.01, length: 32, weight_decay: 0.1, save_every: 2"
    recipe = tmp_path / "adapt.yaml"
    recipe.write_text(
        f"branch: {tmp_path / 'branch'}\ndevice: cpu\nstages:\n"
        f"- {{stage: mid, data: [{tmp_path / 'text.jsonl'}], {quick}, lora: 2}}\n"
        f"- {{stage: sft, data: [{tmp_path / 'chat.jsonl'}], {quick}}}\n"
    )
    adapt(load_recipe(recipe, AdaptRecipe), tmp_path / "one")
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = ["-m", "moegraft", "bar", "adapt", recipe, "--out", tmp_path / "two"]
    done = subprocess.run(
        [sys.executable, *map(str, (*launch, *command))],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("nothing that was frozen has moved") == 1
    assert done.stdout.count("numbers open") == 1
    for stage in ("1-mid", "2-sft"):
        ours, theirs = (
            [
                (row["step"], row["loss"])
                for row in read_metrics(tmp_path / n / "stages" / stage / "train")
            ]
            for n in ("two", "one")
        )
        assert [step for step, _ in ours] == [1, 2, 3]
        assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], abs=2e-5)
        assert not [*(tmp_path / "two" / "stages" / stage / "train").glob("checkpoint-*")]
    start, one, two = (stored_tensors(tmp_path / n) for n in ("branch", "one/branch", "two/branch"))
    for name, tensor in one.items():
        still = data(start[name]) == data(tensor)
        assert still == (data(start[name]) == data(two[name])), name
    stages = read_manifest(tmp_path / "two/branch").stages
    assert [(stage["stage"], stage["tokens"]) for stage in stages] == [("mid", 384), ("sft", 384)]
    assert [(stage["lora"], stage["devices"]) for stage in stages] == [(2, 2), (None, 2)]
    between, trained = (
        stored_tensors(tmp_path / n / "stages/1-mid/branch") for n in ("one", "two")
    )
    for name, tensor in between.items():
        assert torch.allclose(trained[name], tensor, atol=1e-4), name
