"""Verifiable rewards: which verifier grades a response, and what becomes of one that fails.

| kind | gold | a response earns 1 when |
| --- | --- | --- |
| `last_number`, `yes_no`, `letter` | the answer | its answer is right, as the evaluation finds it |
| `program` | JSON, see `programs` | its program passes every test |
| `tool_call` | JSON, see `tool_calls` | it makes the right call, or one that fits the schema |
| `refusal` | `refuse` or `comply` | it refuses what it should, and only that |
| `MODULE:FUNCTION` | any text | your own `function(response, gold)` says so, with any number |
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from moegraft.errors import RecipeError, TrainDataError
from moegraft.evals.extract import EXTRACTIONS, extract, same_answer
from moegraft.train.own_verifier import OwnVerifier
from moegraft.train.programs import Limits, parse_tests, run_program
from moegraft.train.refusals import check_refusal, parse_wanted
from moegraft.train.tool_calls import check_call, parse_wanted_call
from moegraft.train.verdict import Verdict

FAILURES = "verifier_failures.jsonl"
"""In a training's folder: the responses that a verifier could not grade, each with the reason."""

KINDS = (*EXTRACTIONS, "program", "tool_call", "refusal")
"""What a task's `kind` may be, besides `MODULE:FUNCTION`."""

_PARSE: dict[str, Callable[[str], object]] = {
    "program": parse_tests,
    "tool_call": parse_wanted_call,
    "refusal": parse_wanted,
}
_LIMITS = Limits()


def verify(kind: str, response: str, gold: str) -> bool:
    """Whether `response` answers `gold`.

    Args:
        kind: How the answer is found in the response: a name of `EXTRACTIONS` (the last number,
            the first yes or no, the first option letter).
        response: What the model said.
        gold: The right answer.
    """
    assert kind in EXTRACTIONS, kind
    return same_answer(kind, extract(kind, response), [gold])


def rewards(responses: list[str], kinds: list[str], golds: list[str]) -> list[float]:
    """One reward per response: 1 for a verified answer, else 0."""
    with Grader(kinds) as grader:
        return grader.rewards(responses, kinds, golds)


def check_tasks(tasks: Iterable[tuple[str, str]]) -> None:
    """Read every (kind, gold) once, before anything is trained.

    Raises:
        RecipeError: there is no such kind.
        TrainDataError: a gold answer is not what its kind expects; names the task.
    """
    for number, (kind, gold) in enumerate(tasks, 1):
        _check_kind(kind)
        try:
            _PARSE.get(kind, str)(gold)
        except ValueError as error:
            raise TrainDataError(f"task {number}: gold of a {kind}: {error}") from None


@dataclass
class Grader:
    """Grades responses; a verifier that raises or hangs costs its response the reward, no more.

    Use it as a context: own functions run in processes that end with it.

    Raises:
        RecipeError: an own function cannot be imported.
    """

    kinds: Iterable[str] = ()
    """Own functions among these are started, and so checked, at once."""
    failures_file: Path | None = None
    limits: Limits = _LIMITS
    """Of programs and own functions."""
    num_failures: int = 0

    def __post_init__(self) -> None:
        self._own: dict[str, OwnVerifier] = {}
        for kind in sorted(set(self.kinds)):
            _check_kind(kind)
            if ":" in kind:
                self._own_verifier(kind)

    def __enter__(self) -> "Grader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for verifier in self._own.values():
            verifier.close()

    def rewards(
        self, responses: Sequence[str], kinds: Sequence[str], golds: Sequence[str]
    ) -> list[float]:
        """One reward per response, 0 where its verifier failed. Programs run side by side."""
        jobs = [*zip(responses, kinds, golds, strict=True)]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            started = [
                pool.submit(self.grade, *job).result
                if job[1] == "program"
                else partial(self.grade, *job)
                for job in jobs
            ]
            verdicts = [result() for result in started]
        for (response, kind, gold), verdict in zip(jobs, verdicts, strict=True):
            if verdict.failure is not None:
                self._record({"kind": kind, "why": verdict.failure, "gold": gold}, response)
        return [verdict.reward for verdict in verdicts]

    def take_failures(self) -> int:
        """How many there were since the last call."""
        found, self.num_failures = self.num_failures, 0
        return found

    def grade(self, response: str, kind: str, gold: str) -> Verdict:
        """The verdict on one response."""
        _check_kind(kind)
        try:
            if ":" in kind:
                return self._own_verifier(kind)(response, gold)
            if kind == "program":
                return run_program(response, gold, self.limits)
            if kind == "tool_call":
                return Verdict(float(check_call(response, gold)))
            if kind == "refusal":
                return Verdict(float(check_refusal(response, gold)))
            return Verdict(float(verify(kind, response, gold)))
        except (ValueError, OSError, RecursionError) as error:
            return Verdict(0.0, f"{type(error).__name__}: {error}")

    def _own_verifier(self, kind: str) -> OwnVerifier:
        if kind not in self._own:
            self._own[kind] = OwnVerifier(kind, self.limits.seconds)
        return self._own[kind]

    def _record(self, about: dict[str, str], response: str) -> None:
        self.num_failures += 1
        if self.failures_file is not None:
            self.failures_file.parent.mkdir(parents=True, exist_ok=True)
            with self.failures_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**about, "response": response}) + "\n")


def _check_kind(kind: str) -> None:
    module, _, function = kind.partition(":")
    if kind in KINDS or (module and function.isidentifier()):
        return
    raise RecipeError(
        f"verifier {kind!r}: expected one of {', '.join(KINDS)}, or your own as MODULE:FUNCTION"
    )
