import json
import os
import signal
import subprocess
import sys

import pytest

from moegraft.bar.branch import BranchRecipe, plan_branch, write_branch
from moegraft.train.loop import read_metrics
from tiny_families import build_tiny, data, stored_tensors
from tiny_sweep import CHAT, byte_tokenizer

pytestmark = pytest.mark.slow
SCRIPT = """
import os, random, signal, sys
from moegraft.bar.adapt import adapt
from moegraft.bar.stages import AdaptRecipe
from moegraft.config import load_recipe

left = int(sys.argv[3])
def on_step(stage, done, total):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
adapt(load_recipe(sys.argv[1], AdaptRecipe), sys.argv[2], on_step=on_step)
"""


def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path):
    build_tiny("olmo2", vocab_size=258).save_pretrained(tmp_path / "anchor")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(tmp_path / "anchor")
    write_branch(plan_branch(BranchRecipe(str(tmp_path / "anchor"), "math")), tmp_path / "branch")
    turns = [(f"{n}+{n}?", str(2 * n)) for n in range(20)]
    for name, lines in (
        ("chat", [{"prompt": a, "completion": b} for a, b in turns]),
        ("text", [{"text": a + b} for a, b in turns]),
        ("tasks", [{"prompt": a, "kind": "mine:length", "gold": ""} for a, _ in turns]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "mine.py").write_text("def length(text, gold):\n    return len(set(text)) / 8\n")
    quick = "steps: 4, batch: 4, learning_rate: 0.01, save_every: 2"
    (tmp_path / "adapt.yaml").write_text(
        f"branch: {tmp_path / 'branch'}\ndevice: cpu\nstages:\n"
        f"- {{stage: mid, data: [{tmp_path / 'text.jsonl'}], {quick}, length: 32}}\n"
        f"- {{stage: sft, data: [{tmp_path / 'chat.jsonl'}], {quick}, length: 32}}\n"
        f"- {{stage: rl, data: [{tmp_path / 'tasks.jsonl'}], {quick}, length: 6, generations: 4,"
        " mini_batches: 2}\n"
    )

    def run(out, kill_at=0):
        command = [sys.executable, "-c", SCRIPT, tmp_path / "adapt.yaml", tmp_path / out]
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [*map(str, command), str(kill_at)],
            env={**os.environ, "PYTHONPATH": path},
            check=False,
            capture_output=True,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
        return done.returncode

    assert run("whole") == 0
    kills = [run("killed", kill_at=3), run("killed", kill_at=4), run("killed", kill_at=5)]
    assert kills == [-signal.SIGKILL] * 3
    assert run("killed") == 0
    for stage in ("1-mid", "2-sft", "3-rl"):
        rows = [
            read_metrics(tmp_path / n / "stages" / stage / "train") for n in ("whole", "killed")
        ]
        losses = [[(row["step"], row["loss"]) for row in one] for one in rows]
        assert losses[0] == losses[1] and len(losses[0]) == 4
    held = [stored_tensors(tmp_path / name / "branch") for name in ("whole", "killed")]
    assert all(data(tensor) == data(held[1][name]) for name, tensor in held[0].items())
