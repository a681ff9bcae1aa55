"""Invariant 6: an interrupted and resumed run equals an uninterrupted one, killed at any byte."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).with_name("kill_sweeps.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, chat_pair, tiny_tasks) -> Path:
    root = tmp_path_factory.mktemp("runs")
    command = [sys.executable, str(RUNNER)]
    done = subprocess.run(
        [*command, *map(str, (*chat_pair, tiny_tasks, root))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return root


def rows(run_dir: Path) -> dict[str, list[dict]]:
    found = {}
    for kind in ("items", "control"):
        for path in sorted((run_dir / kind).rglob("*.jsonl")):
            lines = path.read_text().splitlines()
            found[str(path.relative_to(run_dir))] = [json.loads(line) for line in lines]
    return found


@pytest.mark.parametrize("name", ["killed", "sharded", "grown"])
def test_a_run_that_was_killed_sharded_or_extended_equals_one_in_one_go(runs, name):
    expected, got = rows(runs / "whole"), rows(runs / name)
    assert got.keys() == expected.keys()
    for path, wanted in expected.items():
        assert [row["item"] for row in got[path]] == [row["item"] for row in wanted]
        for one, other in zip(got[path], wanted, strict=True):
            # In float32 the composition of a batch moves log-probabilities by 1e-6.
            assert one.pop("gold_logprob") == pytest.approx(other["gold_logprob"], abs=1e-5)
            assert one == {key: value for key, value in other.items() if key != "gold_logprob"}
    assert (runs / name / "DONE").exists()
    assert not list((runs / name / "state").rglob("parts/**/*.jsonl"))


def test_no_item_is_scored_twice_unless_its_row_was_torn(runs):
    for name in ("whole", "killed", "sharded", "grown"):
        scored = (runs / f"{name}.log").read_text().split("\n")
        num_rows = sum(map(len, rows(runs / name).values()))
        assert num_rows == 2 * 3 * 5 + 2 * 5
        assert scored.count("scored") == num_rows + scored.count("torn")
