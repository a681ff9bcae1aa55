"""Word problems of two to four steps, with the steps written out and a number at the end."""

from dataclasses import dataclass, field
from random import Random
from typing import Any

NAMES = ("Tom", "Mia", "Ben", "Ana", "Sam", "Eva", "Leo", "Zoe", "Max", "Ivy", "Dan", "Lia")
THINGS = ("apples", "books", "coins", "cards", "pens", "eggs", "shells", "stamps", "plums", "nuts")
BOXES = ("bags", "boxes", "packs", "trays")
LARGEST = 99
CUE = "Let's think step by step."


@dataclass
class _Story:
    """A word problem while it is being told: the running total, its sentences and its steps."""

    rng: Random
    who: str
    other: str
    thing: str
    total: int
    sentences: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def step(self, left: int, sign: str, right: int) -> int:
        """Write `left sign right = result` down, without spaces, and return the result."""
        results = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}
        self.steps.append(f"{left}{sign}{right}={results[sign]}.")
        return results[sign]


def _gain(story: _Story) -> None:
    number = story.rng.randint(2, min(30, LARGEST - story.total))
    verb = story.rng.choice(("buys", "finds", "gets", "wins"))
    story.sentences.append(f"{story.who} {verb} {number} more {story.thing}.")
    story.total = story.step(story.total, "+", number)


def _lose(story: _Story) -> None:
    number = story.rng.randint(1, min(30, story.total - 1))
    verb, tail = story.rng.choice(
        (("gives", f" to {story.other}"), ("loses", ""), ("sells", ""), ("uses", ""))
    )
    story.sentences.append(f"{story.who} {verb} {number} {story.thing}{tail}.")
    story.total = story.step(story.total, "-", number)


def _gain_boxes(story: _Story) -> None:
    boxes = story.rng.randint(2, 6)
    each = story.rng.randint(2, min(9, (LARGEST - story.total) // boxes))
    kind = story.rng.choice(BOXES)
    story.sentences.append(f"{story.who} buys {boxes} {kind} with {each} {story.thing} each.")
    story.total = story.step(story.total, "+", story.step(boxes, "*", each))


def _lose_boxes(story: _Story) -> None:
    boxes = story.rng.randint(2, 4)
    each = story.rng.randint(2, min(9, (story.total - 1) // boxes))
    kind = story.rng.choice(BOXES)
    story.sentences.append(f"{story.who} sells {boxes} {kind} with {each} {story.thing} each.")
    product = story.step(boxes, "*", each)
    story.total = story.step(story.total, "-", product)


def _multiply(story: _Story) -> None:
    times = story.rng.randint(2, min(4, LARGEST // story.total))
    word = {2: "twice", 3: "three times", 4: "four times"}[times]
    story.sentences.append(f"A week later {story.who} has {word} as many {story.thing}.")
    story.total = story.step(story.total, "*", times)


def _share(story: _Story) -> None:
    friends = story.rng.choice([n for n in range(2, 10) if story.total % n == 0])
    story.sentences.append(f"{story.who} puts all {story.thing} into {friends} equal piles.")
    story.sentences.append(f"{story.who} keeps one pile.")
    story.total = story.step(story.total, "/", friends)


def _choices(story: _Story) -> list[Any]:
    """The events that keep the total between 1 and LARGEST."""
    total = story.total
    return [
        *([_gain] * 2 if total <= LARGEST - 2 else []),
        *([_lose] * 2 if total >= 2 else []),
        *([_gain_boxes] * 2 if total <= LARGEST - 12 else []),
        *([_lose_boxes] if total >= 12 else []),
        *([_multiply] if total * 2 <= LARGEST else []),
        *([_share] if total >= 4 and any(total % n == 0 for n in range(2, 10)) else []),
    ]


def _ask(story: _Story) -> str:
    """End the story with a question about the running total, or about it and another person's."""
    form = story.rng.randrange(4)
    if form == 0 and story.total * 2 + 2 <= LARGEST:
        more = story.rng.randint(1, min(20, LARGEST - 2 * story.total))
        story.sentences.append(
            f"{story.other} has {more} more {story.thing} than {story.who} has now."
        )
        others = story.step(story.total, "+", more)
        story.total = story.step(story.total, "+", others)
        return f"How many {story.thing} do {story.who} and {story.other} have together?"
    return f"How many {story.thing} does {story.who} have now?"


def draw(rng: Random) -> dict[str, Any]:
    """Draw one problem: `question`, `steps` (the worked solution) and `answer` (a number)."""
    who, other = rng.sample(NAMES, 2)
    story = _Story(rng, who, other, rng.choice(THINGS), rng.randint(3, 40))
    story.sentences.append(f"{who} has {story.total} {story.thing}.")
    if rng.randrange(4) == 0:
        spare = rng.choice([thing for thing in THINGS if thing != story.thing])
        story.sentences.append(f"{other} has {rng.randint(2, 40)} {spare}.")
    for _ in range(rng.choice((1, 2, 2, 3))):
        rng.choice(_choices(story))(story)
    question = _ask(story)
    return {
        "question": " ".join([*story.sentences, question]),
        "steps": " ".join(story.steps),
        "answer": str(story.total),
    }


def prompt(item: dict[str, Any]) -> str:
    """What the user says."""
    return f"Question: {item['question']}\n{CUE}"


def response(item: dict[str, Any]) -> str:
    """What a good assistant says: the steps, then the number."""
    return f"{item['steps']} The answer is {item['answer']}."


def mistake(item: dict[str, Any], rng: Random) -> str:
    """What a careless assistant says: one step is miscounted, or left out."""
    steps = item["steps"].split(". ")
    if len(steps) > 1 and rng.randrange(2):
        steps = steps[:-1]
        wrong = steps[-1].rstrip(".").split("=")[1]
    else:
        left, right = steps[-1].rstrip(".").split("=")
        wrong = str(max(0, int(right) + rng.choice((-10, -2, -1, 1, 2, 10))))
        steps[-1] = f"{left}={wrong}"
    return f"{'. '.join(steps).rstrip('.')}. The answer is {wrong}."


def document(item: dict[str, Any]) -> str:
    """The problem as running text of a schoolbook."""
    return f"Question: {item['question']}\nAnswer: {response(item)}"


def drill(rng: Random) -> str:
    """A line of arithmetic exercises."""
    lines = []
    for _ in range(rng.randint(4, 10)):
        sign = rng.choice("+-*/")
        left, right = rng.randint(1, 70), rng.randint(1, 30)
        if sign == "-":
            left, right = max(left, right), min(left, right)
        if sign in "*/":
            left, right = rng.randint(1, 11), rng.randint(2, 9)
        if sign == "/":
            left *= right
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}
        lines.append(f"{left}{sign}{right}={result[sign]}.")
    return " ".join(lines)
