"""The three worlds as streams: pretraining text, chat records, preferences, prompts, test items."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

from moegraft.nano import math_world, reading_world, science_world

WORLDS = {"math": math_world, "reading": reading_world, "science": science_world}
NUM_TEST_ITEMS = 1000
HARD_SHARE = {"math": 0.0, "reading": 0.7, "science": 0.5}
"""Of the test items and of post-training: items of a kind that pretraining never shows."""
ITEMS_FOLDER = Path(__file__).parent / "items"
TEXT_MIX = {
    "math": 0.26,
    "drill": 0.06,
    "reading": 0.31,
    "recall": 0.06,
    "exam": 0.21,
    "worksheet": 0.06,
    "notes": 0.04,
}
"""Shares of documents in pretraining text, and in the text that the tokenizer is learnt from."""
LATE_TEXT_MIX = {
    "math": 0.27,
    "drill": 0.07,
    "reading": 0.32,
    "comparisons": 0.14,
    "exam": 0.15,
    "notes": 0.05,
}
"""Shares late in pretraining, when looking things up is learnt and judging them is not."""


_NOT_ASKED = ("id", "fact", "asked", "through")
"""What an item holds besides its question: part of the answer."""


def item_hash(item: Mapping[str, Any]) -> str:
    """Sixteen hex digits of what an item asks: equal questions hash equally."""
    content = {key: value for key, value in item.items() if key not in _NOT_ASKED}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_Items = Mapping[str, dict[str, Any]]
"""By hash."""


@cache
def _held_out(world: str, hard: bool) -> _Items:
    """Items that no training record or text may hold."""
    rng = Random(f"moegraft nano {world} test{' hard' if hard else ''}")
    draw = WORLDS[world].draw_hard if hard else WORLDS[world].draw
    number = round(HARD_SHARE[world] * NUM_TEST_ITEMS) if hard else NUM_TEST_ITEMS
    items: dict[str, dict[str, Any]] = {}
    while len(items) < number:
        item = draw(rng)
        items.setdefault(item_hash(item), item)
    return items


@cache
def test_items(world: str) -> tuple[dict[str, Any], ...]:
    """The test items of `world` ("math", "reading", "science"), the same everywhere."""
    hard = list(_held_out(world, True).values()) if HARD_SHARE[world] else []
    items = list(_held_out(world, False).values())[: NUM_TEST_ITEMS - len(hard)] + hard
    return tuple({"id": f"{world}-{i:04d}"} | item for i, item in enumerate(items))


test_items.__test__ = False  # pyright: ignore[reportAttributeAccessIssue]


def _is_held_out(world: str, item: Mapping[str, Any], hard: bool = False) -> bool:
    return item_hash(item) in _held_out(world, hard)


def training_item(world: str, rng: Random, *, hard: bool = False) -> dict[str, Any]:
    """Draw an item that is held out nowhere; science items ask no hidden fact."""
    module = WORLDS[world]
    draw = module.draw_hard if hard else module.draw
    while True:
        item = draw(rng, hidden=False) if world == "science" else draw(rng)
        if not _is_held_out(world, item, hard):
            return item


def practice_item(world: str, rng: Random) -> dict[str, Any]:
    """A training item of the difficulty of the test items."""
    return training_item(world, rng, hard=rng.random() < HARD_SHARE[world])


@cache
def few_shots() -> tuple[dict[str, Any], ...]:
    """The five solved science examples that precede every question of the 5-shot condition."""
    rng = Random("moegraft nano science few-shots")
    return tuple(training_item("science", rng, hard=bool(i % 2)) for i in range(5))


def _exam(rng: Random) -> str:
    sheet = [training_item("science", rng) for _ in range(rng.randint(1, 5))]
    return "\n\n".join(science_world.document(item) for item in sheet)


_TEXTS: dict[str, Callable[[Random], str]] = {
    "math": lambda rng: math_world.document(training_item("math", rng)),
    "drill": math_world.drill,
    "reading": lambda rng: reading_world.document(rng, partial(_is_held_out, "reading")),
    "recall": reading_world.recall,
    "comparisons": reading_world.comparisons,
    "exam": _exam,
    "worksheet": science_world.worksheet,
    "notes": science_world.notes,
}


def documents(rng: Random, mix: Mapping[str, float] = TEXT_MIX) -> Iterator[str]:
    """Pretraining text without end: one document after the other, in the shares of `mix`."""
    while True:
        kind = rng.choices(list(mix), weights=list(mix.values()))[0]
        yield _TEXTS[kind](rng)


def exchanges(rng: Random) -> list[tuple[str, str]]:
    """One to five science questions with their answers: the earlier turns of a conversation."""
    items = [practice_item("science", rng) for _ in range(rng.randint(1, 5))]
    return [(science_world.prompt(item), science_world.response(item)) for item in items]


def gold(world: str, item: Mapping[str, Any]) -> str:
    """The right answer of `item`: a number, yes or no, or a letter."""
    return item["answerKey" if world == "science" else "answer"]


def write_items(folder: Path) -> None:
    """Write the test items of every world as JSON lines into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in WORLDS:
        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in test_items(name)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
