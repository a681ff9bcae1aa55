"""`moegraft sweep` and `report`: run a designed experiment, and write what it found."""

import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from moegraft.errors import RecipeError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_STAGES = {"items": "sweep", "control": "A/A control", "confirm": "confirmation"}
_SECONDS_BETWEEN_LINES = 15.0


def register(app: typer.Typer) -> None:
    """Add `sweep` and `report` to `app`."""
    app.command()(sweep)
    app.command()(report)


def sweep(
    recipe: Annotated[
        Path | None, typer.Argument(help="A sweep recipe (YAML); options override it.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="The run directory; the same command resumes.")],
    host: Annotated[str | None, typer.Option(help="Folder, org/name[@rev] or nano:NAME.")] = None,
    donor: Annotated[str | None, typer.Option(help="The checkpoint that gives.")] = None,
    preset: Annotated[str | None, typer.Option(help="paper, factorial or custom.")] = None,
    factors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B", help="Components of a factorial; 'rest' is all but the paper's three."
        ),
    ] = None,
    configurations: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="Such as attention+experts; more than the preset's."),
    ] = None,
    conditions: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="Tasks under a prompting, or task files."),
    ] = None,
    limit: Annotated[str | None, typer.Option(help="Items per cell, or 'all'.")] = None,
    seed: Annotated[int | None, typer.Option(help="Orders the items.")] = None,
    confirm: Annotated[
        bool | None,
        typer.Option("--confirm", help="Evaluate host, donor and the best on all items."),
    ] = None,
    confirm_configurations: Annotated[
        list[str] | None, typer.Option(metavar="A,B", help="More to evaluate on all items.")
    ] = None,
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
    shard: Annotated[str, typer.Option(help="i/n: this is the i-th of n processes.")] = "1/1",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    memory_budget: Annotated[
        str | None, typer.Option(help="Memory for host and donors, e.g. 16GB.")
    ] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens of one forward pass.")] = None,
    batch_rows: Annotated[int | None, typer.Option(help="Generations in flight.")] = None,
) -> None:
    """Evaluate compositions of host and donor: every item once, resumable, then the report."""
    from moegraft.sweep.execute import Execution, run_sweep

    asked = {
        "host": host,
        "donor": donor,
        "preset": preset,
        "factors": _split(factors),
        "configurations": _split(configurations),
        "conditions": _split(conditions),
        "limit": _limit(limit),
        "seed": seed,
        "confirm": confirm,
        "confirm_configurations": _split(confirm_configurations),
        "dtype": dtype,
        "qk_norm": qk_norm,
        "chat_template": chat_template,
    }
    wanted = _recipe(recipe, {key: value for key, value in asked.items() if value is not None})
    execution = Execution(
        device=device,
        data_dir=data,
        include=tuple(include or ()),
        shard=_shard(shard),
        memory_budget_bytes=None if memory_budget is None else _num_bytes(memory_budget),
        batch_tokens=batch_tokens,
        batch_rows=batch_rows,
        command=_command(),
    )
    notes = Console(stderr=True, soft_wrap=True)
    try:
        with _progress() as on_progress:
            complete = run_sweep(
                wanted,
                out,
                execution,
                on_progress=on_progress,
                on_note=lambda note: notes.print(note, style="dim", markup=False),
            )
    except KeyboardInterrupt:
        notes.print(
            f"interrupted; finished items are kept. Resume with: {_command()}", markup=False
        )
        raise typer.Exit(130) from None
    if complete:
        _print_report(out, "default")
    else:
        notes.print(
            f"shard {shard} has no items left; the report follows when the other shards are "
            "finished too",
            markup=False,
        )


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    style: Annotated[str, typer.Option(help="default, or paper for its tables alone.")] = "default",
    export: Annotated[
        str | None, typer.Option(help="lm-eval: write samples_*.jsonl in its format.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print summary.json on stdout.")] = False,
) -> None:
    """Write the report of a run, finished or not; needs neither torch nor the checkpoints."""
    if style not in ("default", "paper"):
        raise RecipeError(f"--style: expected default or paper, got {style!r}")
    if export is not None:
        _export(run_dir, export)
    elif json:
        from moegraft.report import write_report

        sys.stdout.write(write_report(run_dir, style)["summary.json"].read_text())
    else:
        _print_report(run_dir, style)


def _export(run_dir: Path, form: str) -> None:
    from moegraft.evals.export import export_samples

    if form != "lm-eval":
        raise RecipeError(f"--export: expected lm-eval, got {form!r}")
    for path in export_samples(run_dir):
        sys.stdout.write(f"{path}\n")


def _print_report(run_dir: Path, style: str) -> None:
    import json

    from moegraft.report import print_tables, verdicts, write_report

    paths = write_report(run_dir, style)
    summary = json.loads(paths["summary.json"].read_text())
    console = Console()
    print_tables(summary, console, style=style)
    if style == "default":
        for sentence in verdicts(summary):
            console.print(sentence, highlight=False, markup=False)
            console.print()
    console.print(f"report: {paths['report.html']}", highlight=False, soft_wrap=True)


def _recipe(path: Path | None, asked: dict[str, Any]) -> Any:
    from dataclasses import asdict

    from moegraft.config import load_recipe, parse_recipe
    from moegraft.sweep.design import SweepRecipe

    if path is None:
        missing = [f"--{key}" for key in ("host", "donor") if key not in asked]
        if missing:
            raise RecipeError(f"{' and '.join(missing)} missing; name them, or a recipe file")
        return parse_recipe(asked, SweepRecipe, where="sweep")
    given = asdict(load_recipe(path, SweepRecipe))
    return (
        parse_recipe(given | asked, SweepRecipe, where=str(path))
        if asked
        else load_recipe(path, SweepRecipe)
    )


def _split(values: Sequence[str] | None) -> list[str] | None:
    if values is None:
        return None
    return [part.strip() for value in values for part in re.split(r",(?![^\[]*\])", value)]


def _limit(text: str | None) -> int | str | None:
    if text is None or text == "all":
        return text
    if not text.isdecimal():
        raise RecipeError(f"--limit: expected a number or 'all', got {text!r}")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise RecipeError(f"--shard: expected i/n with i from 1 to n, as in 2/8, got {text!r}")
    return int(match[1]), int(match[2])


def _num_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if not match:
        raise RecipeError(f"--memory-budget: expected a size such as 16GB or 24GiB, got {text!r}")
    unit = _UNITS[match[2].upper()]
    power = {1: 0, 10**3: 1, 10**6: 2, 10**9: 3, 10**12: 4}[unit]
    return int(float(match[1]) * (1024**power if match[3] else unit))


def _command() -> str:
    return shlex.join(["moegraft", *sys.argv[1:]])


@contextmanager
def _progress() -> Iterator[Callable[[Any], None]]:
    """A bar with rate and time left on a terminal; elsewhere a line now and then."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        yield _Bars(bar)


class _Bars:
    """One bar per stage of the sweep."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, now: Any) -> None:
        if now.kind not in self._tasks:
            self._tasks[now.kind] = self._bar.add_task(now.kind, total=now.total, rate="")
        task = self._tasks[now.kind]
        speed = self._bar.tasks[task].speed
        self._bar.update(
            task,
            completed=now.done,
            description=f"{_STAGES[now.kind]}: {now.condition}, {now.configuration}",
            rate=f"{speed:.1f} items/s" if speed else "",
        )


class _Lines:
    """A line of progress now and then, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started: dict[str, float] = {}
        self._told = time.monotonic()

    def __call__(self, now: Any) -> None:
        moment = time.monotonic()
        began = self._started.setdefault(now.kind, moment)
        if now.done < now.total and moment - self._told < _SECONDS_BETWEEN_LINES:
            return
        self._told = moment
        rate = (now.done - 1) / max(moment - began, 1e-9)
        left = (now.total - now.done) / rate if rate else 0.0
        self._console.print(
            f"{_STAGES[now.kind]}: {now.done} of {now.total} items, {rate:.1f} items/s, "
            f"{left / 60:.0f} min left ({now.condition}, {now.configuration})",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
