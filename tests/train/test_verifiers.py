import json
import time

import pytest

from moegraft.errors import RecipeError, TrainDataError
from moegraft.train.programs import Limits
from moegraft.train.verifiers import FAILURES, Grader, check_tasks, rewards, verify


@pytest.mark.parametrize(
    ("kind", "response", "gold", "right"),
    [
        ("last_number", "2*3=6. 6+1=7. The answer is 7.", "7", True),
        ("last_number", "The answer is 7.0", "7", True),
        ("last_number", "7 at first, then 8", "7", False),
        ("last_number", "no idea", "7", False),
        ("yes_no", "Yes, it is.", "yes", True),
        ("yes_no", "nothing", "no", False),
        ("letter", "B.", "B", True),
        ("letter", "Because", "B", False),
    ],
)
def test_a_response_is_right_when_its_answer_is(kind, response, gold, right):
    assert verify(kind, response, gold) is right


def test_rewards_are_one_or_zero():
    assert rewards(["yes", "A"], ["yes_no", "letter"], ["no", "A"]) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("kind", "gold", "message"),
    [
        ("program", "assert True", "task 2: gold of a program: not valid JSON"),
        ("program", '{"tests": []}', "a list of at least one test"),
        ("program", '{"cases": ["1"]}', "expected statements under `tests`, pairs under `cases`"),
        ("tool_call", "{}", "a JSON object with `call`, `tools` or both"),
        ("tool_call", '{"call": {"name": 3}}', "`call` needs a text `name`"),
        ("tool_call", '{"tools": {"f": {"pattern": "a"}}}', "keyword 'pattern' is not supported"),
        ("refusal", "no", "expected refuse or comply, got 'no'"),
    ],
)
def test_a_gold_answer_that_cannot_be_used_is_named_before_training(kind, gold, message):
    with pytest.raises(TrainDataError, match=message):
        check_tasks([("yes_no", "yes"), (kind, gold)])


def test_an_unknown_verifier_is_refused():
    with pytest.raises(RecipeError, match="verifier 'digit': expected one of last_number"):
        check_tasks([("digit", "7")])
    with pytest.raises(RecipeError, match="verifier json:nothing: AttributeError: module 'json'"):
        Grader(["json:nothing"])
    with pytest.raises(RecipeError, match="ModuleNotFoundError: No module named 'no_such_module'"):
        Grader(["no_such_module:f"])


OWN = """
import os, time

def check(response, gold):
    print("noise on stdout")
    if response == "raise":
        raise KeyError("this one")
    if response == "hang":
        time.sleep(60)
    if response == "die":
        os._exit(3)
    if response == "text":
        return "good"
    if response == "nan":
        return float("nan")
    return 0.5 if response == "half" else response == gold
"""


def test_an_own_verifier_that_raises_hangs_or_dies_is_recorded_and_costs_the_reward(
    tmp_path, monkeypatch
):
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    record = tmp_path / "run" / FAILURES
    responses = ["right", "raise", "half", "hang", "die", "text", "nan", "right"]
    began = time.monotonic()
    with Grader(["mine:check"], record, Limits(seconds=0.5)) as grader:
        given = grader.rewards(responses, ["mine:check"] * 8, ["right"] * 8)
    assert time.monotonic() - began < 30
    assert given == [1.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert grader.num_failures == 5
    told = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(row["response"], row["why"]) for row in told] == [
        ("raise", "mine:check: KeyError: 'this one'"),
        ("hang", "mine:check took more than 0.5 s"),
        ("die", "mine:check ended its process"),
        ("text", "mine:check returned \"'good'\", expected a finite number"),
        ("nan", "mine:check returned nan, expected a finite number"),
    ]


def test_a_gold_that_breaks_a_verifier_is_a_recorded_failure_too():
    with Grader() as grader:
        assert grader.rewards(["1"], ["program"], ["{"]) == [0.0]
    assert grader.num_failures == 1
