"""`moegraft sweep` and `report`: run a designed experiment, and write what it found."""

import sys
from json import loads
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from moegraft.cli.options import (
    DeviceMapOption,
    command_line,
    parse_bytes,
    parse_device_map,
    parse_json,
    parse_limit,
    parse_shard,
    show_progress,
    split_list,
)
from moegraft.cli.terminal import stderr_console, stdout_console, write_json
from moegraft.errors import RecipeError


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
    chat_template_kwargs: Annotated[
        str | None, typer.Option(metavar="JSON", help="For the template: '{\"thinking\": false}'.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Generations per item, averaged; needs --temperature.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; 0 is greedy.")] = None,
    max_gen_toks: Annotated[int | None, typer.Option(help="Tokens of one generation.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with local JSON lines.")] = None,
    include: Annotated[
        list[Path] | None, typer.Option(help="Folder with more task files; repeatable.")
    ] = None,
    shard: Annotated[str, typer.Option(help="i/n: this is the i-th of n processes.")] = "1/1",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    device_map: DeviceMapOption = None,
    memory_budget: Annotated[
        str | None, typer.Option(help="Memory for host and donors on each device, e.g. 16GB.")
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
        "factors": split_list(factors),
        "configurations": split_list(configurations),
        "conditions": split_list(conditions),
        "limit": parse_limit(limit),
        "seed": seed,
        "confirm": confirm,
        "confirm_configurations": split_list(confirm_configurations),
        "dtype": dtype,
        "qk_norm": qk_norm,
        "chat_template": chat_template,
        "chat_template_kwargs": parse_json("--chat-template-kwargs", chat_template_kwargs),
        "repeats": repeats,
        "temperature": temperature,
        "max_gen_toks": max_gen_toks,
    }
    wanted = _recipe(recipe, {key: value for key, value in asked.items() if value is not None})
    execution = Execution(
        device=device,
        device_map=parse_device_map(device_map),
        data_dir=data,
        include=tuple(include or ()),
        shard=parse_shard(shard),
        memory_budget_bytes=None if memory_budget is None else parse_bytes(memory_budget),
        batch_tokens=batch_tokens,
        batch_rows=batch_rows,
        command=command_line(),
    )
    notes = stderr_console()
    try:
        with show_progress() as on_progress:
            complete = run_sweep(
                wanted,
                out,
                execution,
                on_progress=on_progress,
                on_note=lambda note: notes.print(note, style="dim", markup=False),
            )
    except KeyboardInterrupt:
        notes.print(
            f"interrupted; finished items are kept. Resume with: {command_line()}", markup=False
        )
        raise typer.Exit(130) from None
    if complete:
        print_report(out, "default")
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

        written = write_report(run_dir, style)["summary.json"]
        write_json(loads(written.read_text(encoding="utf-8")))
    else:
        print_report(run_dir, style)


def _export(run_dir: Path, form: str) -> None:
    from moegraft.evals.export import export_samples

    if form != "lm-eval":
        raise RecipeError(f"--export: expected lm-eval, got {form!r}")
    for path in export_samples(run_dir):
        sys.stdout.write(f"{path}\n")


def print_report(run_dir: Path, style: str) -> None:
    """Write the report of a run, print its tables and say where it is."""
    from moegraft.report import print_tables, verdicts, write_report

    paths = write_report(run_dir, style)
    summary = loads(paths["summary.json"].read_text(encoding="utf-8"))
    console = stdout_console()
    print_tables(summary, console, style=style)
    if style == "default":
        for sentence in verdicts(summary):
            condition, colon, rest = sentence.partition(": ")
            console.print(Text.assemble((condition, "bold"), colon, rest))
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
