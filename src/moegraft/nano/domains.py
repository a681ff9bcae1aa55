"""What a dense nano model learns domain by domain: text, chat records, prompts, test items."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from moegraft.evals.extract import extract, same_answer
from moegraft.nano import (
    code_world,
    math_world,
    reading_world,
    safety_world,
    science_world,
    tool_world,
    worlds,
)

Item = dict[str, Any]
MOST_STEPS = 2
"""Equations of a word problem here."""
_TEST_SHARE = 5
"""One in so many of all possible items is a test item, the others are for training."""


class Kind(NamedTuple):
    """One kind of question: how items are drawn, asked, answered and graded."""

    draw: Callable[[Random], Item]
    prompt: Callable[[Item], str]
    response: Callable[[Item], str]
    check: Callable[[Item, str], bool]
    key: Callable[[Item], str]
    """What an item of training must not share with one of the test."""


def _draw_math(rng: Random) -> Item:
    while True:
        item = math_world.draw(rng)
        if item["steps"].count("=") <= MOST_STEPS:
            return item


def _ask_reading(item: Item) -> str:
    return f"Text: {item['passage']}\nQuestion: {item['question']}"


def _answer_reading(item: Item) -> str:
    return f"Answer: {item['fact']}."


def _check_reading(item: Item, text: str) -> bool:
    """The first line of `text` has to state the fact."""
    return text.strip().split("\n")[0] == _answer_reading(item)


def _check_chat(item: Item, text: str) -> bool:
    return text.strip() == safety_world.response(item)


def _graded(world: str, kind: str) -> Callable[[Item, str], bool]:
    return lambda item, text: same_answer(kind, extract(kind, text), [worlds.gold(world, item)])


KINDS: dict[str, Kind] = {
    "reading": Kind(
        reading_world.draw_open,
        _ask_reading,
        _answer_reading,
        _check_reading,
        lambda item: item["passage"] + item["question"],
    ),
    "science": Kind(
        lambda rng: science_world.draw(rng, hidden=False),
        science_world.prompt,
        science_world.response,
        _graded("science", "letter"),
        lambda item: item["question"] + " ".join(item["choices"]["text"]),
    ),
    "chat": Kind(
        safety_world.draw_plain,
        safety_world.prompt,
        safety_world.response,
        _check_chat,
        lambda item: f"{item['verb']} {item['thing']}",
    ),
    "math": Kind(
        _draw_math,
        math_world.prompt,
        math_world.response,
        _graded("math", "last_number"),
        lambda item: item["question"],
    ),
    "code": Kind(
        code_world.draw,
        code_world.prompt,
        code_world.response,
        code_world.check,
        lambda item: item["program"],
    ),
    "tool": Kind(
        tool_world.draw,
        tool_world.prompt,
        tool_world.response,
        tool_world.check,
        lambda item: item["request"],
    ),
    "safety": Kind(
        safety_world.draw,
        safety_world.prompt,
        safety_world.response,
        safety_world.check,
        lambda item: f"{item['verb']} {item['thing']}",
    ),
}
DOMAINS: dict[str, tuple[str, ...]] = {
    "general": ("reading", "science", "chat"),
    "math": ("math",),
    "code": ("code",),
    "tool": ("tool",),
    "safety": ("safety",),
}
"""The kinds of question of each domain; the anchor holds the general one."""
BASE_MIX = {
    "open": 0.34,
    "recall": 0.12,
    "exam": 0.24,
    "worksheet": 0.06,
    "notes": 0.08,
    "drill": 0.08,
    "math": 0.08,
}
"""Shares of documents in the base model's text: as text of the web, it holds some arithmetic."""
LATE_BASE_MIX = {
    "open": 0.2,
    "recall": 0.06,
    "everyday": 0.22,
    "exam": 0.24,
    "worksheet": 0.04,
    "notes": 0.04,
    "drill": 0.12,
    "math": 0.08,
}
"""Shares late in its training, when it looks up the words of its passages, but no others yet."""
LATE_BASE_STEP = 1300
ANNEAL_MIX = {
    "open": 0.12,
    "everyday": 0.22,
    "shuffled": 0.2,
    "exam": 0.2,
    "notes": 0.04,
    "drill": 0.08,
    "math": 0.14,
}
"""Shares in its second stage."""
_EVERYDAY = (
    *math_world.NAMES,
    *math_world.THINGS,
    *tool_world.CITIES,
    *tool_world.DAYS,
    *tool_world.DISHES,
    *map(str, range(1, 100)),
)


def _is_test(kind: str, item: Item) -> bool:
    digest = hashlib.sha256(f"{kind} {KINDS[kind].key(item)}".encode()).digest()
    return digest[0] % _TEST_SHARE == 0


def training_item(kind: str, rng: Random) -> Item:
    """Draw an item whose key no test item can have."""
    while True:
        item = KINDS[kind].draw(rng)
        if not _is_test(kind, item):
            return item


@cache
def test_items(kind: str, number: int) -> tuple[Item, ...]:
    """The first `number` test items of `kind`: different ones, the same everywhere.

    Safety alternates between requests to refuse and benign ones.
    """
    rng = Random(f"moegraft nano domains {kind} test")
    items: dict[str, Item] = {}
    for _ in range(200 * number):
        if len(items) == number:
            return tuple(items.values())
        item = KINDS[kind].draw(rng)
        if kind == "safety" and item["refuse"] is bool(len(items) % 2):
            continue
        if _is_test(kind, item):
            items.setdefault(KINDS[kind].prompt(item), item)
    raise AssertionError(f"{kind} has fewer than {number} test items")


test_items.__test__ = False  # pyright: ignore[reportAttributeAccessIssue]


def _math_document(rng: Random) -> str:
    return math_world.document(training_item("math", rng))


def _exam(rng: Random) -> str:
    sheet = [training_item("science", rng) for _ in range(rng.randint(1, 4))]
    return "\n\n".join(science_world.document(item) for item in sheet)


def _everyday(rng: Random) -> str:
    """A list of words and numbers, then the same list; or pairs, and then the pairs reordered."""
    words = rng.sample(_EVERYDAY, 2 * rng.randint(2, 5))
    if rng.randrange(2):
        told = ", ".join(words)
        return f"List: {told}.\nAnswer: {told}."
    pairs = [f"{left}: {right}" for left, right in zip(words[::2], words[1::2], strict=True)]
    told = ", ".join(pairs)
    rng.shuffle(pairs)
    return f"Pairs: {told}.\nAnswer: {', '.join(pairs)}."


def _shuffled(rng: Random) -> str:
    """Words of a program, a call or a refusal in any order, then the same: every token, no skill.

    A large model has met every token of its vocabulary in pretraining. Rows that were never met
    have to be learnt by a branch's embedding and head, of which a merge keeps a fraction.
    """
    text = _TEXTS[rng.choice(("code", "tool", "safety"))](rng)
    for token in tool_world.SPECIAL_TOKENS:
        text = text.replace(token, " ")
    words = text.split()
    rng.shuffle(words)
    told = " ".join(words[:12])
    return f"List: {told}.\nAnswer: {told}."


_TEXTS: Mapping[str, Callable[[Random], str]] = {
    "open": reading_world.open_document,
    "recall": reading_world.recall,
    "everyday": _everyday,
    "shuffled": _shuffled,
    "exam": _exam,
    "worksheet": science_world.worksheet,
    "notes": science_world.notes,
    "drill": math_world.drill,
    "math": _math_document,
    "code": lambda rng: code_world.document(training_item("code", rng), rng),
    "tool": lambda rng: tool_world.document(training_item("tool", rng)),
    "safety": lambda rng: safety_world.document(training_item("safety", rng)),
}
TEXT_MIX: dict[str, Mapping[str, float]] = {
    "general": {name: share for name, share in BASE_MIX.items() if name not in ("drill", "math")},
    "math": {"math": 0.8, "drill": 0.2},
    "code": {"code": 1.0},
    "tool": {"tool": 1.0},
    "safety": {"safety": 1.0},
}
"""Shares of documents in the mid-training text of each domain."""


def documents(rng: Random, mix: Mapping[str, float]) -> Iterator[str]:
    """Text without end: one document after the other, in the shares of `mix`."""
    while True:
        yield _TEXTS[rng.choices(list(mix), weights=list(mix.values()))[0]](rng)


def base_text(rng: Random, step: int) -> Iterator[str]:
    """The base model's text at a training step, without end."""
    return documents(rng, LATE_BASE_MIX if step >= LATE_BASE_STEP else BASE_MIX)


def anneal_text(rng: Random, _step: int) -> Iterator[str]:
    """The base model's text in its second stage, without end."""
    return documents(rng, ANNEAL_MIX)


def chats(domain: str, rng: Random) -> Iterator[dict[str, Any]]:
    """Chat records of `domain` without end: {"messages": [user's turn, assistant's turn]}."""
    while True:
        kind = rng.choice(DOMAINS[domain])
        item = training_item(kind, rng)
        yield {
            "messages": [
                {"role": "user", "content": KINDS[kind].prompt(item)},
                {"role": "assistant", "content": KINDS[kind].response(item)},
            ]
        }


_VERIFIERS: dict[str, tuple[str, Callable[[Item], str]]] = {
    "math": ("last_number", lambda item: item["answer"]),
    "code": (f"{code_world.__name__}:{code_world.passes.__name__}", code_world.gold),
}
"""Domains with reinforcement learning: the verifier's name, and what it is told of an item."""


def tasks(domain: str, rng: Random) -> Iterator[dict[str, Any]]:
    """Tasks of `domain` without end for reinforcement learning, each with its verifier's name."""
    kind, gold = _VERIFIERS[domain]
    while True:
        item = training_item(domain, rng)
        turns = [{"role": "user", "content": KINDS[domain].prompt(item)}]
        yield {"prompt": turns, "kind": kind, "gold": gold(item)}


def write(
    folder: Path, *, num_texts: int = 2000, num_chats: int = 2000, num_items: int = 200, seed: int
) -> None:
    """Write every domain below `folder`: text, chats, tasks (math, code) and test items as JSON."""
    for domain, kinds in DOMAINS.items():
        place = folder / domain
        place.mkdir(parents=True, exist_ok=True)
        rng = Random(f"moegraft nano domains {domain} {seed}")
        texts = ({"text": text} for text in documents(rng, TEXT_MIX[domain]))
        _write(place / "text.jsonl", islice(texts, num_texts))
        _write(place / "chat.jsonl", islice(chats(domain, rng), num_chats))
        if domain in _VERIFIERS:
            _write(place / "tasks.jsonl", islice(tasks(domain, rng), num_chats))
        for kind in kinds:
            items = (
                {"id": f"{kind}-{i:04d}", "prompt": KINDS[kind].prompt(item), **item}
                for i, item in enumerate(test_items(kind, num_items if kind != "chat" else 10))
            )
            _write(place / f"{kind}.items.jsonl", items)


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
