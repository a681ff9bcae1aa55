"""`moegraft select`: which composition to ship, from a run, or by a search beyond its eight."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from moegraft.cli.evaluation import DataOption, DeviceOption, IncludeOption
from moegraft.cli.options import (
    DeviceMapOption,
    command_line,
    parse_device_map,
    parse_weights,
)
from moegraft.cli.terminal import stderr_console, stdout_console, write_json
from moegraft.cli.wide_table import print_note
from moegraft.errors import RecipeError

_WIDE = 100
"""Columns of a terminal in which names of configurations need not be folded."""
_OF_RUN = ("host", "donor", "dtype", "qk_norm", "chat_template", "chat_template_kwargs")


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
    search: Annotated[
        bool, typer.Option("--search", help="Search component x layer group for --condition.")
    ] = False,
    budget: Annotated[
        int | None, typer.Option(help="With --search: item evaluations to spend [4000].")
    ] = None,
    groups: Annotated[int | None, typer.Option(help="With --search: groups of layers [4].")] = None,
    confirm_items: Annotated[
        int | None, typer.Option(help="With --search: held-out items to confirm on [500].")
    ] = None,
    data: DataOption = None,
    include: IncludeOption = None,
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Choose the best composition on some items, confirm it on others, and write its recipe."""
    from moegraft.evals.execution import Execution
    from moegraft.sweep.select import recipe_of_choice, select, told, write_choice

    numbers = {"budget": budget, "groups": groups, "confirm_items": confirm_items}
    if search:
        if weights:
            raise RecipeError("--weights: a search is for one condition; leave it out")
        given = {"host": host, "donor": donor, "condition": condition, "seed": seed, **numbers}
        execution = Execution(
            device=device,
            device_map=parse_device_map(device_map),
            data_dir=data,
            include=tuple(include or ()),
            command=command_line(),
        )
        _search(run, given, out, execution, as_json=as_json)
        return
    searching = {**numbers, "device_map": device_map}
    idle = [f"--{key.replace('_', '-')}" for key, value in searching.items() if value is not None]
    if idle:
        raise RecipeError(f"{idle[0]}: has an effect only with --search")
    if run is None:
        raise RecipeError("RUN missing: name a run directory, or use --search")
    if condition and weights:
        raise RecipeError("--condition and --weights: give one of them")
    content = select(run, condition=condition, weights=parse_weights(weights), seed=seed)
    choice = content["choice"] or _only(content["table"], out)
    if out is not None and choice is not None:
        made = recipe_of_choice(run, choice["configuration"], host=host, donor=donor)
        write_choice(out, made, choice)
    if as_json:
        recipe = None if out is None else str(out)
        write_json({**content, "choice": choice, "recipe": recipe})
        return
    console = stdout_console()
    if not content["finished"]:
        stderr_console().print("the run is not finished; all this may change", style="dim")
    _show(console, content["table"])
    asked = [choice] if choice is not None else []
    for line in [told(one) for one in asked or content["table"]]:
        print_note(console, f"- {line}")
    if out is not None and choice is not None:
        line = _compose(choice, out)
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _search(
    run: Path | None,
    given: Mapping[str, Any],
    out: Path | None,
    execution: Any,
    *,
    as_json: bool,
) -> None:
    """Search for a composition, and say what held-out items confirm."""
    from moegraft.config import parse_recipe
    from moegraft.sweep.search_run import SearchRecipe, run_search
    from moegraft.sweep.select import told

    asked = _of_run(run) | {key: value for key, value in given.items() if value is not None}
    missing = [f"--{key}" for key in ("host", "donor", "condition") if key not in asked]
    if out is None:
        missing.append("--out (the folder to make)")
    if missing or out is None:
        raise RecipeError(f"--search: {', '.join(missing)} missing")
    recipe = parse_recipe(asked, SearchRecipe, where="select --search")
    with _progress(stderr_console(soft_wrap=False)) as on_step:
        content = run_search(recipe, out, execution, on_step=on_step)
    if as_json:
        write_json(content)
        return
    console = stdout_console()
    tried = _table("Highest gold log-probability", ("composition", "minus host, nats per item"))
    for one in content["tried"][:8]:
        tried.add_row(escape(one["composition"]), f"{one['gold_difference']:+.3g}")
    console.print(tried)
    spent = f"{len(content['tried'])} compositions tried for {content['spent']} item evaluations."
    for line in (told(content["choice"]), spent):
        print_note(console, f"- {line}")
    line = _compose(content["choice"], out / "recipe.yaml")
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _of_run(run: Path | None) -> dict[str, Any]:
    """What a run's recipe says about models and prompts."""
    if run is None:
        return {}
    from moegraft.sweep.record import recipe_of_run

    content = asdict(recipe_of_run(run))
    return {key: content[key] for key in _OF_RUN if content.get(key) is not None}


def _compose(choice: Mapping[str, Any], recipe: Path) -> str:
    """How to compose what was chosen, and whether that is advised."""
    advised = choice["recommended"] == choice["configuration"]
    lead = "compose" if advised else "compose all the same"
    return f"{lead}: moegraft transfer {recipe} --out DIR"


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[Any], None]]:
    """A bar per stage on a terminal, nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def on_step(step: Any) -> None:
            if step.stage not in tasks:
                tasks[step.stage] = bar.add_task(step.stage, total=step.total)
            bar.update(tasks[step.stage], completed=step.done)

        yield on_step


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
    from moegraft.report.tables import fold_label
    from moegraft.report.task_table import advice
    from moegraft.report.words import p_value, points

    columns = ("condition", "composition", "score", "minus host\n[95%]", "p (Holm)")
    best = _table("Best composition, on items it was not chosen on", columns)
    parts = list(dict.fromkeys(name for entry in entries for name in entry["components"]))
    whose = _table("Whose components: main effect, simultaneous interval", ("condition", *parts))
    for entry in entries:
        test, name = entry["against"]["host"], entry["condition"]
        low, high = map(points, test["interval"])
        difference = f"{points(test['difference'], sign=True)}\n[{low}, {high}]"
        row = (
            fold_label(entry["configuration"], console.width < _WIDE),
            points(entry["score"]),
            difference,
            p_value(test["p_holm"]),
        )
        best.add_row(escape(name), *map(escape, row))
        said = advice(entry)
        words = [said.get(part, "-").replace(" ", "\n", 1) for part in parts]
        cells = [text.replace(" [", "\n[") for text in words]
        whose.add_row(escape(name), *map(escape, cells))
    console.print(best)
    if parts:
        console.print(whose)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    made = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    for name in columns:
        made.add_column(escape(name), no_wrap=name in ("condition", "composition"))
    return made
