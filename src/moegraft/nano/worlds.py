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
ITEMS_FOLDER = Path(__file__).parent / "items"
TEXT_MIX = {
    "math": 0.25,
    "drill": 0.07,
    "reading": 0.30,
    "recall": 0.06,
    "exam": 0.20,
    "worksheet": 0.05,
    "notes": 0.07,
}
"""Shares of documents in the pretraining text."""


def item_hash(item: Mapping[str, Any]) -> str:
    """Sixteen hex digits of what an item asks: equal questions hash equally."""
    content = {key: value for key, value in item.items() if key not in ("id", "fact")}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _test_set(world: str) -> tuple[tuple[dict[str, Any], ...], frozenset[str]]:
    rng = Random(f"moegraft nano {world} test")
    items: dict[str, dict[str, Any]] = {}
    while len(items) < NUM_TEST_ITEMS:
        item = WORLDS[world].draw(rng)
        items.setdefault(item_hash(item), item)
    named = tuple({"id": f"{world}-{i:04d}"} | item for i, item in enumerate(items.values()))
    return named, frozenset(items)


def test_items(world: str) -> tuple[dict[str, Any], ...]:
    """The test items of `world` ("math", "reading", "science"), the same everywhere."""
    return _test_set(world)[0]


test_items.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


def _is_test_item(world: str, item: Mapping[str, Any]) -> bool:
    return item_hash(item) in _test_set(world)[1]


def training_item(world: str, rng: Random) -> dict[str, Any]:
    """Draw an item that is not a test item; science items ask no hidden fact."""
    while True:
        item = (
            science_world.draw(rng, hidden=False) if world == "science" else WORLDS[world].draw(rng)
        )
        if not _is_test_item(world, item):
            return item


@cache
def few_shots() -> tuple[dict[str, Any], ...]:
    """The five solved science examples that precede every question of the 5-shot condition."""
    rng = Random("moegraft nano science few-shots")
    return tuple(training_item("science", rng) for _ in range(5))


def _exam(rng: Random) -> str:
    sheet = [training_item("science", rng) for _ in range(rng.randint(1, 5))]
    return "\n\n".join(science_world.document(item) for item in sheet)


_TEXTS: dict[str, Callable[[Random], str]] = {
    "math": lambda rng: math_world.document(training_item("math", rng)),
    "drill": math_world.drill,
    "reading": lambda rng: reading_world.document(rng, partial(_is_test_item, "reading")),
    "recall": reading_world.recall,
    "exam": _exam,
    "worksheet": science_world.worksheet,
    "notes": science_world.notes,
}


def documents(rng: Random) -> Iterator[str]:
    """Pretraining text without end: one document after the other, in the shares of TEXT_MIX."""
    while True:
        kind = rng.choices(list(TEXT_MIX), weights=list(TEXT_MIX.values()))[0]
        yield _TEXTS[kind](rng)


def exchanges(rng: Random) -> list[tuple[str, str]]:
    """One to five science questions with their answers: the earlier turns of a conversation."""
    items = [training_item("science", rng) for _ in range(rng.randint(1, 5))]
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
