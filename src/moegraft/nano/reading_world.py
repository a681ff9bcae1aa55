"""Short passages about people, places and things, each with a question that yes or no answers."""

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from moegraft.nano.math_world import NAMES

PLACES = ("kitchen", "garden", "school", "park", "library", "market", "attic", "office")
OBJECTS = ("ball", "key", "lamp", "cup", "hat", "map", "bell", "rope")
COLORS = ("red", "blue", "green", "white", "black", "yellow")
CUE = "Say what the text tells and what is asked, then yes or no."
_TOLD = {
    "place": "{} is in the {}",
    "holder": "The {} is with {}",
    "color": "The {} is {}",
}
"""How a fact of each kind is told, its subject before its value."""
_VALUES = {"place": PLACES, "holder": NAMES, "color": COLORS}
_ASKED = {
    "place": "Is {} in the {}?",
    "holder": "Is the {} with {}?",
    "color": "Is the {} {}?",
}
_WONDERED = {
    "place": "Where is {}?",
    "holder": "Who has the {}?",
    "color": "What color is the {}?",
}


class _Scene:
    """What a passage has told so far: where people are, who has what, which color a thing has."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.people = rng.sample(NAMES, 3)
        self.objects = rng.sample(OBJECTS, 3)
        self.now: dict[tuple[str, str], str] = {}
        self.past: dict[tuple[str, str], str] = {}
        self.sentences: list[str] = []

    def tell(self) -> None:
        """Tell one more fact; one about the same subject replaces what was true before."""
        kind = self.rng.choice(("place", "place", "holder", "holder", "color"))
        subject = self.rng.choice(self.people if kind == "place" else self.objects)
        known = self.now.get((kind, subject))
        if kind == "color" and known:
            return
        values = self.people if kind == "holder" else _VALUES[kind]
        value = self.rng.choice([value for value in values if value != known])
        fact = _TOLD[kind].format(subject, value)
        if known:
            self.past[kind, subject] = known
            fact = "Then " + (fact if kind == "place" else fact[0].lower() + fact[1:])
        self.now[kind, subject] = value
        self.sentences.append(f"{fact}.")

    def fact(self, kind: str, subject: str) -> str:
        """What the passage says about `subject` at its end."""
        return _TOLD[kind].format(subject, self.now[kind, subject])

    def other(self, kind: str, subject: str) -> str:
        """A wrong value, if possible one that the passage gives elsewhere or gave before."""
        right = self.now[kind, subject]
        near = [v for (k, _), v in sorted(self.now.items()) if k == kind and v != right]
        near += [self.past[kind, subject]] if (kind, subject) in self.past else []
        far = [value for value in _VALUES[kind] if value != right]
        return self.rng.choice(near if near and self.rng.randrange(2) else far)


def _scene(rng: Random, fewest: int = 2, most: int = 6) -> _Scene:
    scene = _Scene(rng)
    number = rng.randint(fewest, most)
    while len(scene.sentences) < number:
        scene.tell()
    return scene


class _Question(NamedTuple):
    text: str
    fact: str
    """What the passage says about it."""
    asked: str
    """The value that the question asks about."""


def _ask_direct(scene: _Scene, truth: bool) -> _Question:
    kind, subject = scene.rng.choice(sorted(scene.now))
    value = scene.now[kind, subject] if truth else scene.other(kind, subject)
    return _Question(_ASKED[kind].format(subject, value), scene.fact(kind, subject), value)


def _ask_thing_place(scene: _Scene, truth: bool) -> _Question | None:
    """Two facts at once: a thing is where the person is who has it."""
    places = {subject for kind, subject in scene.now if kind == "place"}
    known = [s for (k, s), who in sorted(scene.now.items()) if k == "holder" and who in places]
    if not known:
        return None
    thing = scene.rng.choice(known)
    who = scene.now["holder", thing]
    place = scene.now["place", who] if truth else scene.other("place", who)
    fact = f"{scene.fact('holder', thing)}, {scene.fact('place', who)}"
    return _Question(f"Is the {thing} in the {place}?", fact, place)


def _ask(scene: _Scene) -> dict[str, Any]:
    """An item about the scene; yes and no are equally frequent."""
    truth = bool(scene.rng.randrange(2))
    two_facts = _ask_thing_place(scene, truth) if scene.rng.randrange(3) == 0 else None
    question = two_facts or _ask_direct(scene, truth)
    return {
        "passage": " ".join(scene.sentences),
        "question": question.text,
        "fact": question.fact,
        "asked": question.asked,
        "answer": "yes" if truth else "no",
    }


def draw(rng: Random) -> dict[str, Any]:
    """Draw one item.

    It has a `passage`, a `question`, the `fact` that decides, the value that is `asked` about, and
    the `answer`, yes or no.
    """
    return _ask(_scene(rng))


def draw_hard(rng: Random) -> dict[str, Any]:
    """As `draw`, with a passage longer than any in the pretraining text."""
    return _ask(_scene(rng, 7, 10))


def draw_open(rng: Random) -> dict[str, Any]:
    """Draw an item that asks where, who or which color: the `answer` is one word of the passage.

    The passage has two to four sentences; `fact` says what it tells about the subject.
    """
    scene = _scene(rng, 2, 4)
    kind, subject = rng.choice(sorted(scene.now))
    return {
        "passage": " ".join(scene.sentences),
        "question": _WONDERED[kind].format(subject),
        "fact": scene.fact(kind, subject),
        "answer": scene.now[kind, subject],
    }


def prompt(item: dict[str, Any]) -> str:
    """What the user says."""
    return f"Text: {item['passage']}\nQuestion: {item['question']}\n{CUE}"


def response(item: dict[str, Any]) -> str:
    """What a good assistant says."""
    return f"Answer: {item['fact']}, asked {item['asked']}, so {item['answer']}."


def mistake(item: dict[str, Any], rng: Random) -> str:
    """What a careless assistant says: the opposite, with or without the reason."""
    wrong = "no" if item["answer"] == "yes" else "yes"
    return response(item | {"answer": wrong}) if rng.randrange(2) else f"Answer: {wrong}."


def _wonder(scene: _Scene) -> tuple[str, str]:
    """A question about the scene that a fact answers: where, who or which color."""
    kind, subject = scene.rng.choice(sorted(scene.now))
    return _WONDERED[kind].format(subject), f"Answer: {scene.fact(kind, subject)}."


def document(rng: Random, banned: Callable[[dict[str, Any]], bool]) -> str:
    """A passage with several questions and answers, as it stands in a schoolbook.

    Args:
        rng: Source of all choices.
        banned: Says which yes/no items must not appear (the test items).
    """
    scene = _scene(rng)
    lines = [f"Text: {' '.join(scene.sentences)}"]
    for _ in range(rng.randint(2, 4)):
        if rng.randrange(4) == 0:
            question, answer = _wonder(scene)
            lines += [f"Question: {question}", answer]
            continue
        item = _ask(scene)
        if not banned(item):
            lines += [f"Question: {item['question']}", response(item)]
    return "\n".join(lines)


def open_document(rng: Random) -> str:
    """A short passage with two to four questions that its facts answer."""
    scene = _scene(rng, 2, 4)
    lines = [f"Text: {' '.join(scene.sentences)}"]
    for _ in range(rng.randint(2, 4)):
        question, answer = _wonder(scene)
        lines += [f"Question: {question}", answer]
    return "\n".join(lines)


def comparisons(rng: Random) -> str:
    """Facts, each with a value that is asked about and whether the two agree."""
    lines = []
    for _ in range(rng.randint(4, 10)):
        kind = rng.choice(sorted(_TOLD))
        value = rng.choice(_VALUES[kind])
        subject = rng.choice(NAMES if kind == "place" else OBJECTS)
        same = rng.randrange(2)
        asked = value if same else rng.choice([other for other in _VALUES[kind] if other != value])
        verdict = "yes" if same else "no"
        lines.append(f"{_TOLD[kind].format(subject, value)}, asked {asked}, so {verdict}.")
    return " ".join(lines)


def recall(rng: Random) -> str:
    """Pairs of words, then the same pairs in another order."""
    words = [*NAMES, *PLACES, *OBJECTS, *COLORS]
    chosen = rng.sample(words, 2 * rng.randint(2, 6))
    pairs = [f"{left} {right}" for left, right in zip(chosen[::2], chosen[1::2], strict=True)]
    told = ", ".join(pairs)
    rng.shuffle(pairs)
    return f"Pairs: {told}.\nAnswer: {', '.join(pairs)}."
