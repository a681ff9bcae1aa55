"""Options that the commands which train routers share: `bar route`, `bar add` and so on, `heal`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from moegraft.errors import RecipeError

Data = Annotated[
    list[str] | None,
    typer.Option(metavar="[NAME=]SOURCE", help="Chats or texts of a domain; repeatable."),
]
HeldOut = Annotated[float | None, typer.Option(help="Share that is only measured; default 0.02.")]
Length = Annotated[int | None, typer.Option(help="Tokens of a block; default 2048.")]
Epochs = Annotated[int | None, typer.Option(help="Default 2.")]
LearningRate = Annotated[float | None, typer.Option(help="Default 1e-4.")]
BatchSize = Annotated[int | None, typer.Option(help="Blocks a step; default by data.")]
Seed = Annotated[int | None, typer.Option(help="Default 0.")]
SaveEvery = Annotated[
    int | None, typer.Option(help="Steps between checkpoints to resume from; default none.")
]
Out = Annotated[Path | None, typer.Option(help="The folder to make.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, or auto (as stored).")]
Json = Annotated[bool, typer.Option("--json", help="Data for machines on stdout.")]


def recipe_file(model: str | None) -> Path | None:
    """The recipe, where one was given in the place of a model's folder."""
    return Path(model) if model is not None and model.endswith((".yaml", ".yml")) else None


def sources_of(given: list[str] | None) -> dict[str, str] | None:
    """`--data` options by name; a source without one is called by its file's name.

    Raises:
        RecipeError: a name stands twice.
    """
    if given is None:
        return None
    found: dict[str, str] = {}
    for value in given:
        name, equals, source = value.partition("=")
        name, source = (name, source) if equals else (Path(value).stem, value)
        if name in found:
            raise RecipeError(f"--data {value}: the name {name!r} stands twice; use NAME=SOURCE")
        found[name] = source
    return found


def tuning_of(**given: Any) -> dict[str, Any] | None:
    """Settings of the training that were given, or None."""
    return {name: value for name, value in given.items() if value is not None} or None


def device_of(name: str) -> str:
    """A torch device by name.

    Raises:
        RecipeError: there is no such device here.
    """
    from moegraft.runtime.placement import find_device

    return str(find_device(name))
