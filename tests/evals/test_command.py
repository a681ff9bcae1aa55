"""A user's command as a condition: what it is given, what it may write, how it goes on."""

import json
import sys
import time
from pathlib import Path

import pytest

from moegraft.errors import EvalDataError, RecipeError, RunError
from moegraft.evals.command import Command, is_command, load_command
from moegraft.evals.judge import score_items

SCRIPT = """
import json, os, sys, time
model, stop_after = sys.argv[1], int(sys.argv[2])
for place, line in enumerate(sys.stdin):
    item = json.loads(line)
    if place == stop_after:
        print("out of memory", file=sys.stderr)
        sys.exit(3)
    with open("asked.txt", "a") as log:
        log.write(f"{item['item']}\\n")
    print(json.dumps({"item": item["item"], "score": item["a"] % 2, "output": model}), flush=True)
"""


@pytest.fixture
def make_condition(tmp_path):
    """Write a command condition: `make_condition(script, arguments, docs, **recipe)`."""

    def make(script=SCRIPT, arguments="{model} 999", docs=None, **recipe) -> Path:
        docs = [{"a": place} for place in range(6)] if docs is None else docs
        (tmp_path / "ask.py").write_text(script)
        (tmp_path / "items.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        command = f"{sys.executable} ask.py {arguments}"
        path = tmp_path / "odd.yaml"
        path.write_text(json.dumps({"command": command, "items": "items.jsonl"} | recipe))
        return path

    return make


def scored(path, model="m", **options):
    condition = load_command(path, **options)
    return condition, list(score_items(Command(model), condition, condition.items))


def test_a_command_scores_the_items_that_it_is_given(make_condition):
    condition, rows = scored(make_condition(docs=[{"a": p, "p": p // 2} for p in range(6)]))
    assert is_command(str(make_condition()))
    assert (condition.name, condition.kind, condition.num_total) == ("odd", "command", 6)
    assert [row["item"] for row in rows] == [item.hash for item in condition.items]
    odd = {item.hash: float(item.doc["a"] % 2) for item in condition.items}
    assert {row["item"]: row["score"] for row in rows} == odd
    assert {row["output"] for row in rows} == {"m"}


def test_items_are_ordered_and_cut_as_those_of_other_conditions(make_condition):
    path = make_condition()
    everything, few = load_command(path, seed=1), load_command(path, seed=1, limit=2)
    assert few.items == everything.items[:2]
    assert few.num_total == 6
    assert load_command(path, seed=2).items != everything.items


def test_own_names_clusters_and_golds_are_kept(make_condition):
    docs = [{"item": f"q{p}", "a": p, "passage": p // 2, "answer": p} for p in range(4)]
    path = make_condition(docs=docs, cluster="passage", gold="answer")
    condition, rows = scored(path)
    assert {item.doc["item"] for item in condition.items} == {"q0", "q1", "q2", "q3"}
    assert len({row["cluster"] for row in rows}) == 2
    assert {row["gold"] for row in rows} == {"0", "1", "2", "3"}
    with pytest.raises(EvalDataError, match="two items are called 'x'"):
        load_command(make_condition(docs=[{"item": "x", "a": 1}, {"item": "x", "a": 2}]))


def test_what_a_failing_command_has_written_comes_out_before_the_error(make_condition, capfd):
    condition = load_command(make_condition(arguments="{model} 2"))
    rows = []
    with pytest.raises(RunError, match=r"odd: .* ended with status 3 with 4 of 6 items not scored"):
        rows.extend(score_items(Command("m"), condition, condition.items))
    assert "out of memory" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("print('hello')", "wrote 'hello', expected .*standard error"),
        ("print('{\"item\": 1}')", "expected "),
        ('print(\'{"item": "what", "score": 1}\')', "item 'what' twice or unasked"),
        (
            "import sys, json\ni = json.loads(sys.stdin.readline())['item']\n"
            "print(json.dumps({'item': i, 'score': float('nan')}))",
            "score of item .* is nan",
        ),
        ("", "ended with 6 of 6 items not scored"),
    ],
)
def test_a_command_that_does_not_keep_the_rules_is_one_line(make_condition, script, message):
    with pytest.raises(RunError, match=message) as caught:
        scored(make_condition(script=script))
    assert "\n" not in str(caught.value)


def test_a_command_that_does_not_exist_is_one_line(make_condition):
    path = make_condition()
    path.write_text('{"command": "no-such-program {model}", "items": "items.jsonl"}')
    with pytest.raises(RunError, match="no-such-program: cannot be run: No such file"):
        scored(path)


def test_a_command_needs_a_place_for_the_model_and_items(make_condition, tmp_path):
    path = make_condition()
    path.write_text('{"command": "ask", "items": "items.jsonl"}')
    with pytest.raises(RecipeError, match=r"has no \{model\} in it"):
        load_command(path)
    path.write_text('{"command": "ask {model}", "items": "none.jsonl"}')
    with pytest.raises(EvalDataError, match=r"none.jsonl: no such file of items"):
        load_command(path)
    assert not is_command(str(tmp_path / "items.jsonl"))
    assert not is_command("nano_math/cot")


def test_leaving_early_ends_the_command_and_its_children(make_condition, tmp_path):
    script = (
        "import json, subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "open('child.txt', 'w').write(str(child.pid))\n"
        "item = json.loads(sys.stdin.readline())['item']\n"
        "print(json.dumps({'item': item, 'score': 1}), flush=True)\n"
        "child.wait()\n"
    )
    condition = load_command(make_condition(script=script))
    rows = score_items(Command("m"), condition, condition.items)
    next(rows)
    rows.close()
    status = Path("/proc") / (tmp_path / "child.txt").read_text() / "status"
    for _ in range(100):
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.05)
    pytest.fail("the command's child is still running")
