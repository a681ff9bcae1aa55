"""A saved choice of experts: read, and checked to be one before anything is made of it."""

import json
from collections.abc import Mapping
from operator import index
from pathlib import Path
from typing import Any

from moegraft.errors import RecipeError

SELECTION = "selection.json"
_SHARED = "shared:"


def name_expert(expert: int, num_experts: int) -> int | str:
    """The expert's number, or `shared:0`, `shared:1`, ... for those behind the routed ones."""
    return expert if expert < num_experts else f"{_SHARED}{expert - num_experts}"


def expert_number(name: Any, num_experts: int) -> int:
    """The inverse of `name_expert`. Raises ValueError for what it never gives."""
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < num_experts:
        return name
    number = str(name).removeprefix(_SHARED)
    if isinstance(name, str) and name.startswith(_SHARED) and number.isdecimal():
        return num_experts + int(number)
    raise ValueError(f"{name!r} is none of {num_experts} experts")


def read_selection(path: Path) -> dict[str, Any]:
    """The content of selection.json, or of another file of that form.

    Args:
        path: the file, or its folder.

    Raises:
        RecipeError: no selection can be read there.
    """
    file = path / SELECTION if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise RecipeError(f"{file}: no readable selection; make one with `moegraft xpert identify`")
    chosen_experts(content, str(file))
    return content


def chosen_experts(
    content: Mapping[str, Any], where: str = "selection"
) -> dict[int | str, list[int]]:
    """The experts of each layer as numbers, best first; shared ones behind the routed ones.

    Args:
        content: of selection.json (`Identification.as_dict`).
        where: opens the message.

    Raises:
        RecipeError: it is none, or contradicts itself.
    """
    try:
        num_best, num_experts = index(content["num_best"]), index(content["num_experts"])
        found = {
            entry["layer"]: [expert_number(one["expert"], num_experts) for one in entry["chosen"]]
            for entry in content["layers"]
        }
        is_whole = len(found) == len(content["layers"]) > 0
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(
            f"{where}: no selection of `moegraft xpert identify`: {error!r}"
        ) from None
    odd = [n for n, own in found.items() if not len(own) == len({*own}) == num_best > 0]
    if odd or not is_whole or not {"source", "fingerprint"} <= content.keys():
        problem = f"layer {odd[0]}" if odd else "the list of layers, or their source"
        raise RecipeError(
            f"{where}: damaged: {problem}; expected {num_best} different experts of each layer, "
            "as `moegraft xpert identify` writes them"
        )
    return found
