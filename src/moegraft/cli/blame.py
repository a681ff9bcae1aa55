"""`moegraft blame`: which experts, or which layers' components, carry a difference."""

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from moegraft.cli.options import DeviceMapOption, parse_device_map
from moegraft.cli.terminal import stderr_console, stdout_console, write_json
from moegraft.cli.wide_table import print_note
from moegraft.errors import RecipeError

_OF_RUN = ("host", "donor", "seed", "dtype", "qk_norm", "chat_template", "chat_template_kwargs")


def blame(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run of `sweep`; options override it.")
    ] = None,
    *,
    host: Annotated[str | None, typer.Option(help="Folder, org/name[@rev] or nano:NAME.")] = None,
    donor: Annotated[str | None, typer.Option(help="The checkpoint that gives.")] = None,
    condition: Annotated[str | None, typer.Option(help="A task under a prompting.")] = None,
    units: Annotated[
        str, typer.Option(help="'experts' (each of each layer), or 'components' by layer.")
    ] = "experts",
    items: Annotated[int, typer.Option(help="Items to rank units on.")] = 64,
    confirm_items: Annotated[
        int | None, typer.Option(help="Other items to confirm on; default: as many.")
    ] = None,
    top: Annotated[int, typer.Option(help="Units to confirm and to put into recipe.yaml.")] = 8,
    method: Annotated[
        str,
        typer.Option(help="integrated, gradient (first-order), or swap (each unit; slow)."),
    ] = "integrated",
    path_points: Annotated[int, typer.Option(help="Gradients between host and donor.")] = 4,
    rule: Annotated[str, typer.Option(help="Where: midpoint or gauss.")] = "midpoint",
    seed: Annotated[int | None, typer.Option(help="Orders the items.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.")] = None,
    qk_norm: Annotated[
        str | None, typer.Option(help="q/k norms move with 'attention', or on their 'own'.")
    ] = None,
    chat_template: Annotated[
        bool | None, typer.Option("--chat-template/--no-chat-template", show_default="on")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with local JSON lines.")] = None,
    include: Annotated[
        list[Path] | None, typer.Option(help="Folder with more task files; repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    device_map: DeviceMapOption = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens of one pass.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to make; default: RUN/blame/CONDITION.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print blame.json on stdout.")] = False,
) -> None:
    """Find which experts or components of the donor carry the difference, and confirm them."""
    from moegraft.config import parse_recipe
    from moegraft.evals.execution import Execution
    from moegraft.sweep.blame import BlameRecipe, run_blame

    asked = {
        "host": host,
        "donor": donor,
        "condition": condition,
        "units": units,
        "items": items,
        "confirm_items": confirm_items,
        "top": top,
        "method": method,
        "path_points": path_points,
        "rule": rule,
        "seed": seed,
        "dtype": dtype,
        "qk_norm": qk_norm,
        "chat_template": chat_template,
    }
    given = {key: value for key, value in asked.items() if value is not None}
    recipe = parse_recipe(_of_run(run) | given, BlameRecipe, where=_where(run, given))
    execution = Execution(
        device=device,
        device_map=parse_device_map(device_map),
        data_dir=data,
        include=tuple(include or ()),
        batch_tokens=batch_tokens,
        command=shlex.join(["moegraft", *sys.argv[1:]]),
    )
    folder = _folder(run, out, recipe.condition, recipe.units)
    notes = stderr_console()
    with _progress(notes) as on_step:
        content = run_blame(
            recipe,
            folder,
            execution,
            on_step=on_step,
            on_note=lambda note: notes.print(note, style="dim", markup=False),
        )
    if as_json:
        write_json(content)
    else:
        _show(stdout_console(), content, folder)


def _of_run(run: Path | None) -> dict[str, Any]:
    """What a run's recipe says about models, items and prompts."""
    if run is None:
        return {}
    from moegraft.sweep.record import recipe_of_run

    content = asdict(recipe_of_run(run))
    return {key: content[key] for key in _OF_RUN if content.get(key) is not None}


def _where(run: Path | None, given: Mapping[str, Any]) -> str:
    needed = ("condition",) if run is not None else ("host", "donor", "condition")
    missing = [f"--{key}" for key in needed if key not in given]
    if missing:
        hint = "" if run is not None else "; or give a run directory"
        raise RecipeError(f"{' and '.join(missing)} missing{hint}")
    return str(run or "blame")


def _folder(run: Path | None, out: Path | None, condition: str, units: str) -> Path:
    if out is not None:
        return out
    if run is None:
        raise RecipeError("--out missing: name the folder to make")
    name = Path(condition).stem if condition.endswith((".yaml", ".yml")) else condition
    return run / "blame" / f"{name.replace('/', '-')}-{units}"


def _show(console: Console, content: Mapping[str, Any], folder: Path) -> None:
    from moegraft.report.blame import HEADER, BlameReport

    report = BlameReport(content)
    for sentence in report.sentences():
        print_note(console, f"- {sentence}")
    table = Table(box=SIMPLE_HEAD)
    for number, title in enumerate(HEADER):
        table.add_column(escape(title), justify="right" if 0 < number < len(HEADER) - 1 else "left")
    for row in report.rows():
        table.add_row(*(escape(cell.replace(" [", "\n[")) for cell in row))
    console.print(table)
    for line in (
        f"map: {folder / 'blame.svg'}",
        f"compose: moegraft transfer {folder / 'recipe.yaml'} --out DIR",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[Any], None]]:
    """One bar per stage on a terminal, nothing elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def on_step(step: Any) -> None:
            if step.stage not in tasks:
                tasks[step.stage] = bar.add_task(step.stage, total=step.total)
            bar.update(tasks[step.stage], completed=step.done)

        yield on_step
