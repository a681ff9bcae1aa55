"""Facts about animals and materials, rules about their kinds, and multiple-choice questions."""

from random import Random
from typing import Any

LETTERS = ("A", "B", "C", "D")
CUE = "Answer with the option and its letter."

# name: (kind, food, home)
ANIMALS = {
    "horse": ("mammal", "grass", "farm"),
    "lion": ("mammal", "meat", "savanna"),
    "wolf": ("mammal", "meat", "forest"),
    "whale": ("mammal", "krill", "sea"),
    "bat": ("mammal", "insects", "cave"),
    "mouse": ("mammal", "seeds", "field"),
    "camel": ("mammal", "leaves", "desert"),
    "eagle": ("bird", "meat", "mountain"),
    "owl": ("bird", "mice", "forest"),
    "duck": ("bird", "plants", "pond"),
    "penguin": ("bird", "fish", "ice"),
    "parrot": ("bird", "fruit", "jungle"),
    "sparrow": ("bird", "seeds", "town"),
    "shark": ("fish", "meat", "sea"),
    "trout": ("fish", "insects", "river"),
    "tuna": ("fish", "fish", "sea"),
    "carp": ("fish", "plants", "pond"),
    "snake": ("reptile", "mice", "desert"),
    "lizard": ("reptile", "insects", "desert"),
    "turtle": ("reptile", "plants", "sea"),
    "crocodile": ("reptile", "meat", "river"),
    "bee": ("insect", "nectar", "hive"),
    "ant": ("insect", "leaves", "nest"),
    "butterfly": ("insect", "nectar", "field"),
}
# kind: (covering, breathing organ, number of legs or fins, how the young begin)
ANIMAL_RULES = {
    "mammal": ("hair", "lungs", "milk", "a warm body"),
    "bird": ("feathers", "air sacs", "eggs in a nest", "two wings"),
    "fish": ("wet scales", "gills", "eggs in water", "fins"),
    "reptile": ("dry scales", "slow lungs", "eggs in sand", "a cold body"),
    "insect": ("a shell", "tiny tubes", "larvae", "six legs"),
}
# name: (kind, use, look)
MATERIALS = {
    "iron": ("metal", "bridges", "gray"),
    "copper": ("metal", "wires", "orange"),
    "gold": ("metal", "rings", "yellow"),
    "silver": ("metal", "spoons", "white"),
    "oxygen": ("gas", "breathing", "clear"),
    "helium": ("gas", "balloons", "clear"),
    "steam": ("gas", "engines", "white"),
    "chlorine": ("gas", "pools", "green"),
    "water": ("liquid", "washing", "clear"),
    "oil": ("liquid", "frying", "yellow"),
    "ink": ("liquid", "writing", "black"),
    "mercury": ("liquid", "old thermometers", "gray"),
    "granite": ("rock", "floors", "gray"),
    "chalk": ("rock", "blackboards", "white"),
    "coal": ("rock", "fires", "black"),
    "amber": ("rock", "jewels", "orange"),
    "oak": ("wood", "barrels", "brown"),
    "pine": ("wood", "shelves", "yellow"),
    "balsa": ("wood", "toy planes", "white"),
    "ebony": ("wood", "piano keys", "black"),
}
MATERIAL_RULES = {
    "metal": ("carries current", "bends", "it melts"),
    "gas": ("fills any room", "can be squeezed", "it spreads"),
    "liquid": ("takes the shape of a cup", "flows", "it boils"),
    "rock": ("lies in the ground", "is hard", "it cracks"),
    "wood": ("comes from trees", "floats", "it burns"),
}
# attribute: (question about a name, question about a value, sentence)
_FORMS = {
    "kind": ("What is {n}?", "Which of these is a {v}?", "{n} is a {v}."),
    "food": ("What does {n} eat?", "Which animal eats {v}?", "{n} eats {v}."),
    "home": ("Where does {n} live?", "Which animal lives in the {v}?", "{n} lives in the {v}."),
    "cover": ("What covers the body of {n}?", "Which animal has {v}?", "{n} has {v}."),
    "organ": ("How does {n} breathe?", "Which animal breathes with {v}?", "{n} breathes with {v}."),
    "young": ("How do the young of {n} begin?", "Which animal begins with {v}?",
              "The young of {n} begin with {v}."),
    "mark": ("What marks {n}?", "Which animal is marked by {v}?", "{n} is marked by {v}."),
    "use": ("What is {n} used for?", "What is used for {v}?", "{n} is used for {v}."),
    "look": ("What color is {n}?", "Which of these is {v}?", "{n} is {v}."),
    "deed": ("What is true of {n}?", "Which of these {v}?", "{n} {v}."),
    "trait": ("How does {n} behave?", "Which material {v}?", "{n} {v}."),
    "heat": ("What happens to {n} in great heat?", "What is heated if {v}?",
             "In great heat {n} changes: {v}."),
}  # fmt: skip


def _facts() -> list[tuple[str, str, str]]:
    """All (attribute, name, value) triples, the ones that follow from a rule included."""
    facts = []
    for name, (kind, food, home) in ANIMALS.items():
        values = dict(zip(("cover", "organ", "young", "mark"), ANIMAL_RULES[kind], strict=True))
        values |= {"kind": kind, "food": food, "home": home}
        facts += [(attribute, name, value) for attribute, value in values.items()]
    for name, (kind, use, look) in MATERIALS.items():
        values = dict(zip(("deed", "trait", "heat"), MATERIAL_RULES[kind], strict=True))
        values |= {"kind": kind, "use": use, "look": look}
        facts += [(attribute, name, value) for attribute, value in values.items()]
    return facts


FACTS = _facts()
# Facts that text states but that no training question asks; a sixth of the test items is on them.
HIDDEN = frozenset(FACTS[3::6])


def _named(name: str) -> str:
    """`name` with the article that English wants: an animal is counted, a material is not."""
    if name not in ANIMALS:
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _options(rng: Random, right: str, wrong: list[str]) -> tuple[list[str], str]:
    """Three wrong options and the right one in alphabetical order, and the right one's letter."""
    texts = sorted([*rng.sample(wrong, 3), right])
    return texts, LETTERS[texts.index(right)]


def draw(rng: Random, *, hidden: bool | None = None) -> dict[str, Any]:
    """Draw one item: `question`, `choices` (text and label) and `answerKey`.

    `hidden` restricts the facts to those that no training question asks, or to the others.
    """
    pool = [fact for fact in FACTS if hidden is None or (fact in HIDDEN) is hidden]
    attribute, name, value = rng.choice(pool)
    about_name, about_value, _ = _FORMS[attribute]
    world = ANIMALS if name in ANIMALS else MATERIALS
    peers = [fact for fact in FACTS if fact[0] == attribute and fact[1] in world]
    wrong = sorted({fact[1] for fact in peers if fact[2] != value})
    if rng.randrange(4):
        question = about_name.format(n=_named(name))
        wrong = sorted({fact[2] for fact in peers if fact[2] != value})
        texts, key = _options(rng, value, wrong)
    else:
        question = about_value.format(v=value)
        texts, key = _options(rng, name, wrong)
    return {
        "question": question,
        "choices": {"text": texts, "label": list(LETTERS)},
        "answerKey": key,
    }


def _descriptions() -> dict[str, tuple[str, str]]:
    """What is true of one animal or material only, as a phrase: its name, and the attribute."""
    phrases = {
        "food": "the animal that eats {}",
        "home": "the animal that lives in the {}",
        "use": "the material used for {}",
    }
    found: dict[str, list[tuple[str, str]]] = {}
    for attribute, name, value in FACTS:
        if attribute in phrases:
            found.setdefault(phrases[attribute].format(value), []).append((name, attribute))
    return {phrase: only[0] for phrase, only in found.items() if len(only) == 1}


DESCRIPTIONS = _descriptions()


def draw_hard(rng: Random, *, hidden: bool | None = None) -> dict[str, Any]:
    """As `draw`, but about an animal or material that is only described: two facts at once.

    The item also has the name that is described, as `through`.
    """
    phrase = rng.choice(sorted(DESCRIPTIONS))
    through, known = DESCRIPTIONS[phrase]
    pool = [
        fact
        for fact in FACTS
        if fact[1] == through and fact[0] != known
        if hidden is None or (fact in HIDDEN) is hidden
    ]
    attribute, _, value = rng.choice(pool)
    world = ANIMALS if through in ANIMALS else MATERIALS
    peers = [fact for fact in FACTS if fact[0] == attribute and fact[1] in world]
    texts, key = _options(rng, value, sorted({fact[2] for fact in peers if fact[2] != value}))
    return {
        "question": _FORMS[attribute][0].format(n=phrase),
        "choices": {"text": texts, "label": list(LETTERS)},
        "answerKey": key,
        "through": through,
    }


def asked(item: dict[str, Any]) -> str:
    """The question with its lettered options."""
    lines = [
        f"{label}. {text}" for label, text in zip(LETTERS, item["choices"]["text"], strict=True)
    ]
    return "\n".join([f"Question: {item['question']}", *lines])


def prompt(item: dict[str, Any]) -> str:
    """What the user says."""
    return f"{asked(item)}\n{CUE}"


def _said(item: dict[str, Any], letter: str) -> str:
    through = f"{item['through']}, " if item.get("through") else ""
    return f"Answer: {through}{item['choices']['text'][LETTERS.index(letter)]}, {letter}"


def response(item: dict[str, Any]) -> str:
    """What a good assistant says."""
    return _said(item, item["answerKey"])


def mistake(item: dict[str, Any], rng: Random) -> str:
    """What a careless assistant says: another option."""
    return _said(item, rng.choice([label for label in LETTERS if label != item["answerKey"]]))


def document(item: dict[str, Any]) -> str:
    """The question as it stands in an exercise book."""
    return f"{asked(item)}\n{response(item)}"


def worksheet(rng: Random) -> str:
    """A lettered list, and which letter stands before which entry."""
    pool = sorted(ANIMALS) if rng.randrange(2) else sorted({fact[2] for fact in FACTS})
    texts = sorted(rng.sample(pool, 4))
    lines = [f"{label}. {text}" for label, text in zip(LETTERS, texts, strict=True)]
    asked_for = rng.sample(texts, 4)
    return "\n".join(
        [*lines, *(f"Answer: {text}, {LETTERS[texts.index(text)]}" for text in asked_for)]
    )


def notes(rng: Random) -> str:
    """A page of facts and of the rules behind them, in random order."""
    lines = []
    for attribute, name, value in rng.sample(FACTS, rng.randint(6, 14)):
        sentence = _FORMS[attribute][2].format(n=_named(name), v=value)
        lines.append(sentence[0].upper() + sentence[1:])
    return " ".join(lines)
