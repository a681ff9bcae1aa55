"""Options of a command from a strict YAML recipe, which flags override."""

from pathlib import Path
from typing import Annotated, Any

import typer

from moegraft.errors import RecipeError


def _apply(ctx: Any, recipe: Path | None) -> Path | None:
    """Take the recipe's values as defaults of the command's parameters."""
    if recipe is None:
        return None
    names: dict[str, str] = {}
    for parameter in ctx.command.params:
        if parameter.name in (None, "recipe", "help"):
            continue
        options = [option for option in parameter.opts if option.startswith("--")]
        shown = options[0].removeprefix("--").replace("-", "_") if options else parameter.name
        names[str(shown)] = str(parameter.name)
    content = _read(recipe)
    odd = [key for key in content if key not in names]
    if odd:
        raise RecipeError(f"{recipe}: {odd[0]}: unknown key; expected some of {', '.join(names)}")
    ctx.default_map = {names[key]: value for key, value in content.items() if value is not None}
    return recipe


def _read(recipe: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{recipe}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{recipe}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise RecipeError(f"{recipe}: expected a mapping of recipe keys")
    return {key.replace("-", "_"): value for key, value in content.items()}


RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        callback=_apply,
        is_eager=True,
        help="YAML with these options, under their names; flags override it.",
    ),
]
