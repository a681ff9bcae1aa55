"""`moegraft select`: which composition to ship, from a run, or by a search beyond its eight."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moegraft.cli.evaluation import write_json
from moegraft.errors import RecipeError


def register(app: typer.Typer) -> None:
    """Add `select` to `app`."""
    app.command()(select)


def select(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run of `sweep` or `compare --as`.")
    ] = None,
    *,
    condition: Annotated[
        str | None, typer.Option(help="The best for this condition; a part of its name will do.")
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="A=2,B=1", help="The best for several conditions, weighted."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the transfer recipe here; with --search, the folder to make."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Checkpoint, for imported results and for --search.")
    ] = None,
    donor: Annotated[str | None, typer.Option(help="The checkpoint that gives.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap; orders the items.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Choose the best composition on some items, confirm it on others, and write its recipe."""
    from moegraft.sweep.select import recipe_of_choice, select, told, write_choice

    if run is None:
        raise RecipeError("RUN missing: name a run directory")
    if condition and weights:
        raise RecipeError("--condition and --weights: give one of them")
    content = select(run, condition=condition, weights=_weights(weights), seed=seed)
    choice = content["choice"] or _only(content["table"], out)
    if out is not None and choice is not None:
        made = recipe_of_choice(run, choice["configuration"], host=host, donor=donor)
        write_choice(out, made, choice)
    if as_json:
        recipe = None if out is None else str(out)
        write_json({**content, "choice": choice, "recipe": recipe})
        return
    console = Console()
    if not content["finished"]:
        Console(stderr=True).print("the run is not finished; all this may change", style="dim")
    _show(console, content["table"])
    asked = [choice] if choice is not None else []
    for line in [told(one) for one in asked or content["table"]]:
        console.print(f"- {line}", markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        line = f"compose: moegraft transfer {out} --out DIR"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _weights(texts: list[str] | None) -> dict[str, float] | None:
    """`--weights A=2,B=1`."""
    if texts is None:
        return None
    found: dict[str, float] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        name, equals, number = part.rpartition("=")
        if not equals or not name:
            raise RecipeError(f"--weights {part}: expected CONDITION=NUMBER")
        if name in found:
            raise RecipeError(f"--weights: {name!r} is named twice")
        try:
            found[name] = float(number)
        except ValueError:
            raise RecipeError(f"--weights {part}: expected a number, got {number!r}") from None
    return found


def _only(table: list[Any], out: Path | None) -> Any:
    """The choice of a run with one condition, where a recipe is wanted and none is named."""
    if out is None:
        return None
    if len(table) != 1:
        known = ", ".join(entry["condition"] for entry in table) or "none"
        raise RecipeError(f"--out: say for which condition: --condition or --weights, of: {known}")
    return table[0]


def _show(console: Console, entries: list[Mapping[str, Any]]) -> None:
    """The task-adaptive table: what to compose, and whose components to take."""
    from moegraft.report.task_table import advice
    from moegraft.report.words import p_value, points

    best = _table("Best composition, on items it was not chosen on",
                  ("condition", "composition", "score", "minus host [95%]", "p (Holm)"))  # fmt: skip
    parts = list(dict.fromkeys(name for entry in entries for name in entry["components"]))
    whose = _table("Whose components: main effect, simultaneous interval", ("condition", *parts))
    for entry in entries:
        test, name = entry["against"]["host"], entry["condition"]
        low, high = map(points, test["interval"])
        difference = f"{points(test['difference'], sign=True)} [{low}, {high}]"
        row = (entry["configuration"], points(entry["score"]), difference, p_value(test["p_holm"]))
        best.add_row(escape(name), *map(escape, row))
        said = advice(entry)
        cells = [said.get(part, "-").replace(" ", "\n", 1) for part in parts]
        whose.add_row(escape(name), *map(escape, cells))
    console.print(best)
    if parts:
        console.print(whose)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    made = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    for name in columns:
        made.add_column(escape(name), no_wrap=name == "condition")
    return made
