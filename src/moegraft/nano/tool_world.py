"""Requests that a tool can serve: the call is JSON between two new tokens, checked by schema.

The prompt offers two or three tools; at times none of them fits, and the assistant has to say so.
"""

import json
from collections.abc import Mapping
from random import Random
from typing import Any

from moegraft.nano.math_world import NAMES

CALL, END_CALL = "<|call|>", "<|end_call|>"
SPECIAL_TOKENS = (CALL, END_CALL)
"""Tokens that the domain adds to the vocabulary."""
NO_TOOL = "No tool fits."
CITIES = ("Rome", "Oslo", "Lima", "Cairo", "Paris", "Delhi", "Kyoto", "Quito", "Accra", "Bern")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DISHES = ("soup", "pizza", "salad", "rice", "pasta", "curry", "bread", "stew")
TOPICS = ("work", "dinner", "school", "the trip", "the game", "the party")
_INTEGER = range(1, 13)

# tool: (parameters and what they take, ways to ask)
TOOLS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "weather": (
        {"city": CITIES, "day": DAYS},
        ("What is the weather in {city} on {day}?", "Will it rain on {day} in {city}?"),
    ),
    "alarm": (
        {"hour": _INTEGER, "day": DAYS},
        ("Wake me at {hour} on {day}.", "On {day} I must get up at {hour}."),
    ),
    "message": (
        {"to": NAMES, "about": TOPICS},
        ("Write to {to} about {about}.", "Tell {to} something about {about}."),
    ),
    "order": (
        {"dish": DISHES, "count": _INTEGER},
        ("Get me {count} plates of {dish}.", "I want {dish}, {count} times."),
    ),
    "train": (
        {"start": CITIES, "end": CITIES},
        ("Find a train from {start} to {end}.", "I must be in {end} and am in {start}."),
    ),
    "meet": (
        {"with": NAMES, "day": DAYS, "hour": _INTEGER},
        ("Meet {with} on {day} at {hour}.", "{with} and I meet at {hour} on {day}."),
    ),
}


def schema(tool: str) -> dict[str, Any]:
    """The JSON schema of the arguments of `tool`: all required, no others."""
    kinds = {
        name: {"type": "integer", "minimum": 1, "maximum": 12}
        if isinstance(values, range)
        else {"type": "string"}
        for name, values in TOOLS[tool][0].items()
    }
    return {
        "type": "object",
        "properties": kinds,
        "required": [*kinds],
        "additionalProperties": False,
    }


def draw(rng: Random) -> dict[str, Any]:
    """Draw one item.

    It has the `tools` on offer, a `request`, and the right `call` (name and arguments), or None
    where no tool fits.
    """
    tool = rng.choice(sorted(TOOLS))
    parameters, ways = TOOLS[tool]
    arguments = {name: rng.choice(values) for name, values in parameters.items()}
    request = rng.choice(ways).format(**arguments)
    others = [name for name in sorted(TOOLS) if name != tool]
    fits = rng.randrange(6) > 0
    offered = rng.sample(others, rng.randint(1, 2)) + ([tool] if fits else [])
    rng.shuffle(offered)
    return {
        "tools": offered,
        "request": request,
        "call": {"name": tool, "arguments": arguments} if fits else None,
    }


def prompt(item: dict[str, Any]) -> str:
    """What the user says, after what the system offers."""
    offered = "; ".join(f"{tool}({', '.join(TOOLS[tool][0])})" for tool in item["tools"])
    return f"Tools: {offered}\nRequest: {item['request']}"


def response(item: dict[str, Any]) -> str:
    """What a good assistant says: a call between the two tokens, or that no tool fits."""
    if item["call"] is None:
        return NO_TOOL
    return f"{CALL}{json.dumps(item['call'])}{END_CALL}"


def check(item: dict[str, Any], text: str) -> bool:
    """Whether `text`, special tokens included, is one call with the right tool and arguments.

    The arguments must satisfy the tool's schema; where no tool fits, a call is wrong.
    """
    text = text.strip()
    if item["call"] is None:
        return CALL not in text and text.startswith(NO_TOOL)
    if not text.startswith(CALL) or not text.endswith(END_CALL):
        return False
    try:
        call = json.loads(text[len(CALL) : -len(END_CALL)])
    except ValueError:
        return False
    return _is_valid(call) and call == item["call"]


def _is_valid(call: Any) -> bool:
    """Whether `call` names a tool and its arguments are of the tool's schema."""
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
        return False
    if call["name"] not in TOOLS or not isinstance(call["arguments"], dict):
        return False
    return _fits(call["arguments"], TOOLS[call["name"]][0])


def _fits(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    kinds = {name: int if isinstance(values, range) else str for name, values in parameters.items()}
    return arguments.keys() == kinds.keys() and all(
        type(arguments[name]) is kind for name, kind in kinds.items()
    )


def document(item: dict[str, Any]) -> str:
    """The request and its call as they stand in a manual."""
    return f"{prompt(item)}\nAnswer: {response(item)}"
