"""A small list language: tasks in words, programs that solve them, an interpreter that checks.

A program is a chain of operations, `sort | take 3 | add 2`; it starts from a list of whole numbers
and its value is what the last operation leaves: a list, or a number after `sum`, `max`, `min` or
`count`, which can only stand last. Whatever program gives the right values is right.
"""

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Value = list[int] | int
NUM_TESTS = 6
"""Inputs that a program is run on; one is the empty list."""

# operation: (what it does to a list, how a task asks for it)
_PLAIN: dict[str, tuple[Callable[[list[int]], Value], tuple[str, ...]]] = {
    "sort": (sorted, ("sort the list", "put the numbers in order")),
    "reverse": (lambda xs: xs[::-1], ("reverse the list", "turn the list around")),
    "unique": (lambda xs: [*dict.fromkeys(xs)], ("drop repeats", "keep each number once")),
    "even": (lambda xs: [x for x in xs if x % 2 == 0], ("keep even numbers", "drop odd numbers")),
    "odd": (lambda xs: [x for x in xs if x % 2], ("keep odd numbers", "drop even numbers")),
    "sum": (sum, ("add all up", "find the total")),
    "max": (lambda xs: max(xs, default=0), ("find the largest", "give the biggest number")),
    "min": (lambda xs: min(xs, default=0), ("find the smallest", "give the least number")),
    "count": (len, ("count the numbers", "say how many there are")),
}
_NUMBERED: dict[str, tuple[Callable[[list[int], int], list[int]], tuple[str, ...]]] = {
    "add": (lambda xs, n: [x + n for x in xs], ("add {} to each", "raise each by {}")),
    "times": (lambda xs, n: [x * n for x in xs], ("multiply each by {}", "scale each by {}")),
    "take": (lambda xs, n: xs[:n], ("keep the first {}", "take {} from the front")),
    "drop": (lambda xs, n: xs[n:], ("leave out the first {}", "skip {} at the front")),
    "above": (lambda xs, n: [x for x in xs if x > n], ("keep those above {}", "drop up to {}")),
    "below": (lambda xs, n: [x for x in xs if x < n], ("keep those below {}", "drop from {} on")),
}
_LAST = ("sum", "max", "min", "count")
"""Operations that give a number."""
_FIRST = tuple(op for op in (*_PLAIN, *_NUMBERED) if op not in _LAST)


def run(program: str, numbers: Sequence[int]) -> Value | None:
    """The value of `program` on `numbers`, or None where it is no program.

    An empty list has sum, largest, smallest and count 0. A program always ends: it has no loops.
    """
    value: Value = list(numbers)
    for part in program.split("|"):
        words = part.split()
        if not isinstance(value, list) or not words:
            return None
        if len(words) == 1 and words[0] in _PLAIN:
            value = _PLAIN[words[0]][0](value)
        elif len(words) == 2 and words[0] in _NUMBERED and words[1].isdecimal():
            value = _NUMBERED[words[0]][0](value, int(words[1][:6]))
        else:
            return None
    return value


def _operation(rng: Random, choices: Sequence[str]) -> tuple[str, str]:
    """One operation, and words that ask for it."""
    name = rng.choice(choices)
    if name in _PLAIN:
        return name, rng.choice(_PLAIN[name][1])
    number = rng.randint(2, 4) if name in ("times", "take", "drop") else rng.randint(2, 9)
    return f"{name} {number}", rng.choice(_NUMBERED[name][1]).format(number)


def _tell(rng: Random, words: Sequence[str]) -> str:
    """The task in words; one form tells the last step before the others."""
    if rng.randrange(4) == 0:
        return f"{words[-1]} after this: {', then '.join(words[:-1])}."
    return f"{', then '.join(words)}."


def draw(rng: Random) -> dict[str, Any]:
    """Draw one task of two or three operations.

    It has a `task` in words, a `program` that solves it, and `tests`: pairs of a list and the
    value that a right program gives.
    """
    steps = [_operation(rng, _FIRST) for _ in range(rng.randint(1, 2))]
    steps.append(_operation(rng, _FIRST if rng.randrange(2) else _LAST))
    program = " | ".join(name for name, _ in steps)
    inputs = [
        [],
        *([rng.randint(0, 12) for _ in range(rng.randint(4, 9))] for _ in range(NUM_TESTS - 1)),
    ]
    return {
        "task": _tell(rng, [words for _, words in steps]),
        "program": program,
        "tests": [[numbers, run(program, numbers)] for numbers in inputs],
    }


def prompt(item: dict[str, Any]) -> str:
    """What the user says."""
    return f"Program: {item['task']}"


def response(item: dict[str, Any]) -> str:
    """What a good assistant says: the program alone."""
    return item["program"]


def check(item: dict[str, Any], text: str) -> bool:
    """Whether the first line of `text` is a program that gives the right value on every test."""
    lines = text.strip().splitlines()
    return bool(lines) and all(run(lines[0], numbers) == value for numbers, value in item["tests"])


def gold(item: dict[str, Any]) -> str:
    """What `passes` is told: the tests, as JSON."""
    return json.dumps(item["tests"])


def passes(response: str, tests: str) -> bool:
    """`check` as a verifier of reinforcement learning: `moegraft.nano.code_world:passes`."""
    return check({"tests": json.loads(tests)}, response)


def document(item: dict[str, Any], rng: Random) -> str:
    """The task with its program as it stands in a code file, at times with a trace."""
    lines = [f"Program: {item['task']}", item["program"]]
    if rng.randrange(3) == 0:
        value: Value = item["tests"][1][0]
        trace = [_shown(value)]
        for step in item["program"].split(" | "):
            assert isinstance(value, list)
            after = run(step, value)
            assert after is not None
            value = after
            trace.append(f"{step}: {_shown(value)}")
        lines.append("; ".join(trace))
    return "\n".join(lines)


def _shown(value: Value) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
