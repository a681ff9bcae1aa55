from random import Random

import pytest

from moegraft.nano import code_world


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("sort", [1, 2, 2, 7]),
        ("reverse | drop 1", [2, 7, 2]),
        ("unique | times 3", [6, 21, 3]),
        ("even | count", 2),
        ("odd | add 1 | sum", 10),
        ("above 1 | below 7 | take 1", [2]),
        ("max", 7),
        ("above 9 | min", 0),
    ],
)
def test_a_program_has_the_value_its_operations_give(program, value):
    assert code_world.run(program, [2, 7, 2, 1]) == value


@pytest.mark.parametrize(
    "program",
    ["", "sort |", "sum | sort", "take", "take x", "take -1", "sort 2", "fly", "sort sort"],
)
def test_what_is_no_program_has_no_value(program):
    assert code_world.run(program, [2, 7]) is None


def test_a_program_leaves_its_input_alone():
    numbers = [3, 1, 2]
    assert code_world.run("sort", numbers) == [1, 2, 3]
    assert numbers == [3, 1, 2]


def test_any_program_with_the_right_values_is_right_and_others_are_not():
    item = {"tests": [[[], 0], [[5, 1, 4], 5], [[2, 9], 9]]}
    assert code_world.check(item, "max")
    assert code_world.check(item, "sort | max\n\nmore talk")
    assert not code_world.check(item, "min")
    assert not code_world.check(item, "count")
    assert not code_world.check(item, "The program is max")
    assert not code_world.check(item, "")


def test_a_task_is_solved_by_its_program_and_rarely_by_another():
    rng = Random(3)
    items = [code_world.draw(rng) for _ in range(200)]
    assert all(code_world.check(item, code_world.response(item)) for item in items)
    lucky = sum(
        code_world.check(item, other["program"]) for item in items for other in items[:50]
    ) / (200 * 50)
    assert lucky < 0.02


def test_a_trace_shows_every_step():
    rng = Random(0)
    text = next(
        text
        for text in (code_world.document(code_world.draw(rng), rng) for _ in range(99))
        if ";" in text
    )
    _, program, trace = text.split("\n")
    start, *steps = trace.split("; ")
    assert [step.split(":")[0] for step in steps] == program.split(" | ")
    last = code_world.run(program, [int(word) for word in start.split()])
    assert steps[-1].split(":")[1].strip() == code_world._shown(last)
