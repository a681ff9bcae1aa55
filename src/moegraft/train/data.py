"""Chat records as TRL takes them: demonstrations, preferences, and tasks with a gold answer."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from moegraft.errors import TrainDataError
from moegraft.train.records import read_records

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


def hide_progress() -> None:
    """Keep others' progress bars and notes to developers off the terminal."""
    import warnings

    from datasets import disable_progress_bars

    disable_progress_bars()
    # Its new name is not in all versions that we take, and TRL has it on unless it is named.
    old_name = r"`(is_)?gradient_checkpointing` is deprecated"
    warnings.filterwarnings("ignore", old_name, category=FutureWarning)


def read_preferences(source: str | Path, *, split: str = "train") -> Iterator[Record]:
    """Yield the comparisons of a file, a folder or a data set on the Hub.

    A record holds `prompt`, `chosen` and `rejected`, each a text or a list of messages; without
    `prompt`, `chosen` and `rejected` are whole conversations that differ in their last turn.

    Raises:
        TrainDataError: nothing can be read there, or a record is no comparison.
    """
    for number, record in enumerate(read_records(source, split=split), 1):
        chosen, rejected = (turns("assistant", record.get(k)) for k in ("chosen", "rejected"))
        prompt = turns("user", record.get("prompt"))
        if chosen and rejected and not prompt and chosen[:-1] == rejected[:-1]:
            prompt, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:]
        if not (prompt and chosen and rejected):
            raise TrainDataError(
                _wrong(source, number, "`prompt`, `chosen` and `rejected`", record)
            )
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def read_tasks(source: str | Path, *, split: str = "train") -> Iterator[Record]:
    """Yield the tasks of a file, a folder or a data set on the Hub.

    A record holds `prompt` (a text or a list of messages), `kind` and `gold`; a gold answer that
    is no text is passed on as JSON.

    Raises:
        TrainDataError: nothing can be read there, or a record is no task.
    """
    for number, record in enumerate(read_records(source, split=split), 1):
        prompt, kind, gold = turns("user", record.get("prompt")), record.get("kind"), "gold"
        if not prompt or not isinstance(kind, str) or gold not in record:
            raise TrainDataError(_wrong(source, number, "`prompt`, `kind` and `gold`", record))
        gold = record[gold]
        text = gold if isinstance(gold, str) else json.dumps(gold)
        yield {"prompt": prompt, "kind": kind, "gold": text}


def turns(role: str, content: Any) -> list[dict[str, Any]]:
    """A text as one message of `role`, a list of messages as it is; empty for anything else."""
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    listed = content if isinstance(content, Sequence) else []
    is_chat = all(isinstance(t, Mapping) and isinstance(t.get("role"), str) for t in listed)
    return [{k: v for k, v in t.items() if v is not None} for t in listed] if is_chat else []


def _wrong(source: str | Path, number: int, wanted: str, record: Mapping[str, Any]) -> str:
    return f"{source}: record {number}: expected {wanted}, got keys {', '.join(record)}"
