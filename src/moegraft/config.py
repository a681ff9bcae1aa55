"""Frozen dataclasses from and to strict YAML, and the fingerprint of a recipe."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from moegraft.errors import RecipeError

T = TypeVar("T")

STRICT: Any = {"extra": "forbid"}
"""Recipes set `__pydantic_config__ = STRICT`, so that a misspelt key is an error."""


def load_recipe(path: Path | str, recipe_type: type[T]) -> T:
    """Read a YAML recipe from `path` into the frozen dataclass `recipe_type`.

    Raises:
        RecipeError: the file is missing, is no YAML mapping, or does not fit; the message names
            the file and the dotted path of each offending key.
    """
    import yaml

    path = Path(path).expanduser()
    try:
        content = load_yaml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        got = "nothing" if content is None else type(content).__name__
        raise RecipeError(f"{path}: expected a mapping of recipe keys, got {got}")
    return parse_recipe(content, recipe_type, where=str(path))


def load_yaml(text: str) -> Any:
    """The content of a YAML text in which no key stands twice.

    Raises:
        yaml.YAMLError: no YAML, or a key stands twice in one mapping (yaml would keep the last).
    """
    import yaml

    return yaml.load(text, _loader())


def parse_recipe(content: Mapping[str, Any], recipe_type: type[T], *, where: str) -> T:
    """Validate `content` against `recipe_type`; `where` opens every message.

    Raises:
        RecipeError: as `load_recipe`.
    """
    import pydantic  # a tenth of a second that commands without a recipe do not spend

    try:
        return _validator(recipe_type).validate_python(dict(content))
    except pydantic.ValidationError as error:
        raise RecipeError(f"{where}: {_explain(error)}") from None


def dump_recipe(recipe: Any) -> str:
    """The recipe as YAML with every default written out; `load_recipe` reads it back equal."""
    import yaml

    return yaml.safe_dump(recipe_content(recipe), sort_keys=False, allow_unicode=True)


def recipe_content(recipe: Any) -> dict[str, Any]:
    """The recipe as plain data (mappings, lists, numbers, text), every default written out."""
    assert is_dataclass(recipe) and not isinstance(recipe, type)
    return _plain(asdict(recipe))


def fingerprint(recipe: Any) -> str:
    """Hex sha256 of the recipe's content; independent of key order and formatting."""
    content = json.dumps(recipe_content(recipe), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


@cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            if isinstance(node, yaml.MappingNode):
                keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
                seen = set()
                for key in keys:
                    if key.value in seen:
                        told = f"key {key.value!r} stands twice"
                        raise yaml.MarkedYAMLError(None, None, told, key.start_mark)
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    return Loader


@cache
def _validator(recipe_type: type[Any]) -> Any:
    """Building one takes longer than using it."""
    from pydantic import TypeAdapter

    return TypeAdapter(recipe_type)


def _explain(error: Any) -> str:
    """The problems of a pydantic ValidationError in one line."""
    lines = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(step) for step in problem["loc"]) or "recipe"
        if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            lines.append(f"{place}: unknown key")
            continue
        message = problem["msg"].removeprefix("Value error, ")
        got = "" if problem["type"] in ("missing", "value_error") else f", got {problem['input']!r}"
        lines.append(f"{place}: {message}{got}")
    return "; ".join(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return value
