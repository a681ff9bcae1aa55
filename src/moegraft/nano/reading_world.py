"""Short passages about people, places and things, each with a question that yes or no answers."""

from collections.abc import Callable
from random import Random
from typing import Any

from moegraft.nano.math_world import NAMES

PLACES = ("kitchen", "garden", "school", "park", "library", "market", "attic", "office")
OBJECTS = ("ball", "key", "lamp", "cup", "hat", "map", "bell", "rope")
COLORS = ("red", "blue", "green", "white", "black", "yellow")
CUE = "Say what is true, then yes or no."


class _Scene:
    """What is true in a passage so far: places, holders, colors, who is taller."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.people = rng.sample(NAMES, 3)
        self.objects = rng.sample(OBJECTS, 3)
        self.places: dict[str, list[str]] = {}
        self.holder: dict[str, list[str]] = {}
        self.color: dict[str, str] = {}
        self.tall: list[tuple[str, str]] = []
        self.sentences: list[str] = []

    def move(self) -> None:
        """Somebody goes somewhere else."""
        who = self.rng.choice(self.people)
        been = self.places.setdefault(who, [])
        place = self.rng.choice([p for p in PLACES if p not in been[-1:]])
        been.append(place)
        verb = self.rng.choice(("went to", "walked to", "ran to"))
        self.sentences.append(f"{who} {verb} the {place}.")

    def take(self) -> None:
        """Somebody takes a thing, or gives the one in hand to somebody else."""
        thing = self.rng.choice(self.objects)
        had = self.holder.setdefault(thing, [])
        who = self.rng.choice([p for p in self.people if p not in had[-1:]])
        self.sentences.append(
            f"{had[-1]} gave the {thing} to {who}." if had else f"{who} took the {thing}."
        )
        had.append(who)

    def paint(self) -> None:
        """A thing has a colour."""
        free = [thing for thing in self.objects if thing not in self.color]
        if free:
            thing = self.rng.choice(free)
            self.color[thing] = self.rng.choice(COLORS)
            self.sentences.append(f"The {thing} is {self.color[thing]}.")

    def compare(self) -> None:
        """Somebody is taller than somebody else; three people form a chain."""
        if len(self.tall) < 2:
            low = len(self.tall)
            self.tall.append((self.people[low], self.people[low + 1]))
            self.sentences.append(f"{self.people[low]} is taller than {self.people[low + 1]}.")


def _about_place(scene: _Scene, truth: bool) -> tuple[str, str] | None:
    if not scene.places:
        return None
    who = scene.rng.choice(sorted(scene.places))
    now = scene.places[who][-1]
    seen = [p for been in scene.places.values() for p in been if p != now]
    other = scene.rng.choice(seen or [p for p in PLACES if p != now])
    return f"Is {who} in the {now if truth else other}?", f"{who} is in the {now}"


def _about_holder(scene: _Scene, truth: bool) -> tuple[str, str] | None:
    if not scene.holder:
        return None
    thing = scene.rng.choice(sorted(scene.holder))
    now = scene.holder[thing][-1]
    other = scene.rng.choice([p for p in scene.people if p != now])
    return f"Does {now if truth else other} have the {thing}?", f"{now} has the {thing}"


def _about_thing_place(scene: _Scene, truth: bool) -> tuple[str, str] | None:
    """Two facts at once: the thing is where the person is who has it."""
    known = sorted(t for t, had in scene.holder.items() if had[-1] in scene.places)
    if not known:
        return None
    thing = scene.rng.choice(known)
    now = scene.places[scene.holder[thing][-1]][-1]
    seen = [p for been in scene.places.values() for p in been if p != now]
    other = scene.rng.choice(seen or [p for p in PLACES if p != now])
    return f"Is the {thing} in the {now if truth else other}?", f"The {thing} is in the {now}"


def _about_color(scene: _Scene, truth: bool) -> tuple[str, str] | None:
    if not scene.color:
        return None
    thing = scene.rng.choice(sorted(scene.color))
    now = scene.color[thing]
    seen = sorted({c for c in scene.color.values() if c != now})
    other = scene.rng.choice(seen or [c for c in COLORS if c != now])
    return f"Is the {thing} {now if truth else other}?", f"The {thing} is {now}"


def _about_height(scene: _Scene, truth: bool) -> tuple[str, str] | None:
    if not scene.tall:
        return None
    pairs = list(scene.tall)
    if len(pairs) == 2:
        pairs.append((pairs[0][0], pairs[1][1]))
    tall, small = scene.rng.choice(pairs)
    question = f"Is {tall if truth else small} taller than {small if truth else tall}?"
    return question, f"{tall} is taller than {small}"


_QUESTIONS = (
    _about_place,
    _about_place,
    _about_holder,
    _about_thing_place,
    _about_thing_place,
    _about_color,
    _about_height,
)


def _scene(rng: Random) -> _Scene:
    scene = _Scene(rng)
    events = (scene.move, scene.move, scene.take, scene.take, scene.paint, scene.compare)
    for _ in range(rng.randint(4, 8)):
        rng.choice(events)()
    return scene


def _ask(scene: _Scene) -> tuple[str, str, str]:
    """A question about the scene, the fact it is about, and yes or no, equally often."""
    truth = bool(scene.rng.randrange(2))
    asked = None
    while asked is None:
        asked = scene.rng.choice(_QUESTIONS)(scene, truth)
    return *asked, "yes" if truth else "no"


def draw(rng: Random) -> dict[str, Any]:
    """Draw one item: `passage`, `question`, the `fact` that decides, and `answer` (yes or no)."""
    scene = _scene(rng)
    question, fact, answer = _ask(scene)
    passage = " ".join(scene.sentences)
    return {"passage": passage, "question": question, "fact": fact, "answer": answer}


def prompt(item: dict[str, Any]) -> str:
    """What the user says."""
    return f"{item['passage']}\nQuestion: {item['question']}\n{CUE}"


def response(item: dict[str, Any]) -> str:
    """What a good assistant says."""
    return f"{item['fact']}, so {item['answer']}."


def mistake(item: dict[str, Any], rng: Random) -> str:
    """What a careless assistant says: the opposite, with or without the reason."""
    wrong = "no" if item["answer"] == "yes" else "yes"
    return f"{item['fact']}, so {wrong}." if rng.randrange(2) else f"{wrong}."


def _wonder(scene: _Scene) -> tuple[str, str]:
    """A question about the scene that a word answers: where, who or which color."""
    asks = [(f"Where is {who}?", been[-1]) for who, been in sorted(scene.places.items())]
    asks += [(f"Who has the {thing}?", had[-1]) for thing, had in sorted(scene.holder.items())]
    asks += [(f"What color is the {thing}?", c) for thing, c in sorted(scene.color.items())]
    for thing, had in sorted(scene.holder.items()):
        if had[-1] in scene.places:
            asks.append((f"Where is the {thing}?", scene.places[had[-1]][-1]))
    if asks:
        return scene.rng.choice(asks)
    question, _, answer = _ask(scene)
    return question, answer


def document(rng: Random, banned: Callable[[dict[str, Any]], bool]) -> str:
    """A passage with several questions and answers, as it stands in a schoolbook.

    Args:
        rng: Source of all choices.
        banned: Says which yes/no items must not appear (the test items).
    """
    scene = _scene(rng)
    passage = " ".join(scene.sentences)
    lines = [passage]
    for _ in range(rng.randint(3, 6)):
        yes_no = rng.randrange(5) < 3
        if not yes_no:
            question, answer = _wonder(scene)
            lines += [f"Question: {question}", f"Answer: {answer}"]
            continue
        question, fact, answer = _ask(scene)
        item = {"passage": passage, "question": question, "fact": fact, "answer": answer}
        if not banned(item):
            lines += [f"Question: {question}", f"Answer: {response(item)}"]
    return "\n".join(lines)


def recall(rng: Random) -> str:
    """Pairs of words, then the same pairs in another order, or with the words of each swapped."""
    words = [*NAMES, *PLACES, *OBJECTS, *COLORS]
    chosen = rng.sample(words, 2 * rng.randint(4, 8))
    pairs = list(zip(chosen[::2], chosen[1::2], strict=True))
    told = ". ".join(f"{left} {right}" for left, right in pairs)
    rng.shuffle(pairs)
    swap = rng.randrange(2)
    again = ". ".join(f"{right} {left}" if swap else f"{left} {right}" for left, right in pairs)
    return f"{'Swap' if swap else 'Recall'}: {told}.\n{again}."
