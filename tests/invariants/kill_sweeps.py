"""Runs sweeps in forked children, so that each can be killed without paying for the imports."""

import os
import random
import signal
import sys
from importlib import import_module
from pathlib import Path

import torch

from moegraft.sweep.design import SweepRecipe
from moegraft.sweep.execute import Execution, run_sweep

torch.set_num_threads(1)
for name in ("evals.harness", "evals.scorer", "sweep.cells"):  # before the forks, once
    import_module(f"moegraft.{name}")
import_module("lm_eval.tasks")

host, donor, tasks, root = map(Path, sys.argv[1:5])
rng = random.Random(7)


def recipe(limit):
    return SweepRecipe(
        str(host),
        str(donor),
        configurations=("experts",),
        conditions=("tiny_write", "tiny_choose"),
        limit=limit,
        dtype="float32",
    )


def child(name, shard=(1, 1), die_after=None, limit=5):
    """Fork; the child runs the sweep, and kills itself after `die_after` items."""
    pid = os.fork()
    if pid:
        return pid
    scored = []

    def on_progress(now):
        scored.append(now)
        log(name, "scored")
        if len(scored) == die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        complete = run_sweep(
            recipe(limit),
            root / name,
            Execution(include=(tasks,), shard=shard),
            on_progress=on_progress,
        )
        os._exit(0 if complete else 3)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def status(pid):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 3, -9), code
    return code


def tear(name):
    """Cut the newest file of results anywhere in its last row, as a kill in `write` would."""
    files = [*(root / name).rglob("items/**/*.jsonl"), *(root / name).rglob("parts/**/*.jsonl")]
    newest = max(files, key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is None or not (content := newest.read_bytes()):
        return
    last = content[:-1].rfind(b"\n") + 1
    os.truncate(newest, rng.randrange(last, len(content)))
    log(name, "torn")


def log(name, word):
    with (root / f"{name}.log").open("a") as file:
        file.write(f"{word}\n")


assert status(child("whole")) == 0

kills = 0
while (code := status(child("killed", die_after=rng.randint(4, 12)))) == -9:
    kills += 1
    if kills % 2:
        tear("killed")
assert code == 0 and kills >= 3, (code, kills)

pids = [child("sharded", (1, 2), die_after=7), child("sharded", (2, 2))]
assert sorted(map(status, pids)) == [-9, 3]
tear("sharded")
codes = [status(child("sharded", (i, 3), die_after=4 if i == 2 else None)) for i in (1, 2, 3)]
codes.append(status(child("sharded", (2, 3))))
assert codes == [3, -9, 3, 0], codes

assert status(child("grown", limit=3)) == 0
assert status(child("grown")) == 0
