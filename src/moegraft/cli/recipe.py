"""Options of a command from a strict YAML recipe, which flags override."""

from pathlib import Path
from typing import Annotated, Any

import typer

from moegraft.config import load_yaml
from moegraft.errors import RecipeError


def _apply(ctx: Any, recipe: Path | None) -> Path | None:
    """Take the recipe's values as defaults of the command's parameters."""
    if recipe is None:
        return None
    known: dict[str, Any] = {}
    for parameter in ctx.command.params:
        if parameter.name in (None, "recipe", "help"):
            continue
        options = [option for option in parameter.opts if option.startswith("--")]
        shown = options[0].removeprefix("--").replace("-", "_") if options else parameter.name
        known[str(shown)] = parameter
    content = {key: value for key, value in _read(recipe).items() if value is not None}
    odd = [key for key in content if key not in known]
    if odd:
        raise RecipeError(f"{recipe}: {odd[0]}: unknown key; expected some of {', '.join(known)}")
    ctx.default_map = {
        known[key].name: _checked(ctx, known[key], value, f"{recipe}: {key}")
        for key, value in content.items()
    }
    return recipe


def _checked(ctx: Any, parameter: Any, value: Any, where: str) -> Any:
    """The value, one that a flag could have; for a repeatable option a list of them."""
    values = value if isinstance(value, list) else [value]
    takes_many = getattr(parameter, "multiple", False) or parameter.nargs != 1
    if isinstance(value, list) and not takes_many:
        raise RecipeError(f"{where}: expected one value, got {value!r}")
    odd = [one for one in values if isinstance(one, dict | list)]
    if odd:
        raise RecipeError(f"{where}: expected text, numbers or yes and no, got {odd[0]!r}")
    values = [str(Path(one).expanduser()) if str(one).startswith("~/") else one for one in values]
    found = values if takes_many else values[0]
    try:
        parameter.process_value(ctx, found)
    except typer.BadParameter as error:
        raise RecipeError(f"{where}: {error.message.rstrip('.')}, got {value!r}") from None
    return found


def _read(recipe: Path) -> dict[str, Any]:
    import yaml

    try:
        content = load_yaml(recipe.read_text(encoding="utf-8-sig"))
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
