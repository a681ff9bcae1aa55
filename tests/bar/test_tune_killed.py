"""`bar route` and `heal` killed with SIGKILL in the middle go on to the very same end."""

import signal
import subprocess
import sys

import pytest

from moegraft.bar.heal import HealRecipe, heal_model
from moegraft.bar.route import RouteRecipe, train_routers
from moegraft.config import load_recipe
from moegraft.train.loop import read_metrics
from tiny_bar import build_merged, write_chats
from tiny_families import data, stored_tensors

pytestmark = pytest.mark.slow
HOW = """
held_out: 0.2
share: 0.5
length: 64
tuning: {epochs: 3, learning_rate: 0.1, batch: 2, save_every: 2}
"""
SCRIPT = """
import os, signal, sys
from moegraft.bar.heal import HealRecipe, heal_model
from moegraft.bar.route import RouteRecipe, train_routers
from moegraft.config import load_recipe

kind, recipe, out = sys.argv[1:4]
left = int(sys.argv[4])
def on_step(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
if kind == "heal":
    heal_model(load_recipe(recipe, HealRecipe), out, on_step=on_step)
else:
    train_routers(load_recipe(recipe, RouteRecipe), out, on_step=on_step)
"""


def run(kind, recipe, out, work):
    """Train to the end; what was found, and (step, loss) of all steps before the last."""
    losses = []

    def watch(*told):
        if told[-2] == told[-1]:
            losses.extend((row["step"], row["loss"]) for row in read_metrics(work))

    if kind == "heal":
        found = heal_model(load_recipe(recipe, HealRecipe), out, on_step=watch)
        return (found["loss_before"], found["loss_after"]), losses
    return train_routers(load_recipe(recipe, RouteRecipe), out, on_step=watch)["rows"], losses


@pytest.mark.parametrize(("kind", "work"), [("route", "{}.work/k-3"), ("heal", "{}.work")])
def test_a_training_that_is_killed_twice_ends_as_an_undisturbed_one(kind, work, tmp_path):
    merged, chats = build_merged(tmp_path), write_chats(tmp_path)
    lines = "".join(f"  {name}: {source}\n" for name, source in chats.items())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {merged}\ndata:\n{lines}{HOW}")
    whole = run(kind, recipe, tmp_path / "whole", tmp_path / work.format("whole"))
    for kill_at in (3, 4):
        command = [sys.executable, "-c", SCRIPT, kind, recipe, tmp_path / "killed", kill_at]
        done = subprocess.run([*map(str, command)], check=False, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert not (tmp_path / "killed").exists()
        left = tmp_path / work.format("killed")
        assert [*left.glob("checkpoint-*")]
    killed = run(kind, recipe, tmp_path / "killed", tmp_path / work.format("killed"))
    assert killed == whole and len(whole[1]) > 5
    ours, theirs = (stored_tensors(tmp_path / name) for name in ("whole", "killed"))
    assert ours.keys() == theirs.keys()
    assert all(data(tensor) == data(theirs[name]) for name, tensor in ours.items())
    assert not (tmp_path / "killed.work").exists()
