"""Chat records as TRL takes them: demonstrations, preferences, and tasks with a gold answer."""

from collections.abc import Iterable, Sequence
from typing import Any

from datasets import Dataset

Record = dict[str, Any]
Exchange = tuple[str, str]
"""A user's turn and the assistant's answer."""


def _turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def _prompt(prompt: str, before: Sequence[Exchange]) -> list[dict[str, str]]:
    earlier = [turn for q, a in before for turn in _turn("user", q) + _turn("assistant", a)]
    return earlier + _turn("user", prompt)


def demonstration(prompt: str, response: str, before: Sequence[Exchange] = ()) -> Record:
    """One example to imitate, after earlier exchanges: the loss is taken on `response` only."""
    return {"prompt": _prompt(prompt, before), "completion": _turn("assistant", response)}


def preference(prompt: str, chosen: str, rejected: str, before: Sequence[Exchange] = ()) -> Record:
    """One comparison: `chosen` is the better response to `prompt`."""
    return {
        "prompt": _prompt(prompt, before),
        "chosen": _turn("assistant", chosen),
        "rejected": _turn("assistant", rejected),
    }


def task(prompt: str, kind: str, gold: str, before: Sequence[Exchange] = ()) -> Record:
    """One prompt whose responses `verifiers.verify(kind, response, gold)` can grade."""
    return {"prompt": _prompt(prompt, before), "kind": kind, "gold": gold}


def dataset(records: Iterable[Record]) -> Dataset:
    """An in-memory data set in the order of `records`."""
    return Dataset.from_list(list(records))
