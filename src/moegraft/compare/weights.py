"""Conditions by a part of their name, and weights of conditions as shares."""

from collections.abc import Mapping, Sequence

from moegraft.errors import RecipeError


def find_condition(text: str, conditions: Sequence[str], where: str) -> str:
    """The condition of that name, or the only one whose name has `text` in it.

    Raises:
        RecipeError: none fits, or several do.
    """
    fitting = [name for name in conditions if text.lower() in name.lower()]
    if text in conditions:
        return text
    if len(fitting) == 1:
        return fitting[0]
    expected = ", ".join(fitting or conditions)
    problem = "fits several" if fitting else "no such condition"
    raise RecipeError(f"{where} {text}: {problem}; expected one of: {expected}")


def resolve_weights(
    weights: Mapping[str, float | int], conditions: Sequence[str]
) -> dict[str, float]:
    """Shares that sum to 1 by full condition name.

    Raises:
        RecipeError: a weight that is not positive, a condition that is not there or named twice.
    """
    found: dict[str, float] = {}
    for text, weight in weights.items():
        name = find_condition(text, conditions, "--weights")
        if not 0 < weight < float("inf"):
            raise RecipeError(f"--weights {text}: expected a positive number, got {weight:g}")
        if name in found:
            raise RecipeError(f"--weights {text}: {name} is named twice")
        found[name] = float(weight)
    total = sum(found.values())
    return {name: weight / total for name, weight in found.items()}
