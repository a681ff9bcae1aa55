"""`moegraft xpert compare`: does starting from experts help? Arms trained and compared."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from moegraft.cli.options import split_list
from moegraft.cli.steps import draw_figures, say, show_steps
from moegraft.cli.terminal import stdout_console, write_json
from moegraft.cli.xpert_decompose import require_torch
from moegraft.config import load_recipe, parse_recipe, recipe_content
from moegraft.errors import RecipeError

_TRAINING = ("num_steps", "batch", "block", "learning_rate", "eval_every", "save_every")


def compare(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe (YAML); options override it.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="The run directory; the same command resumes.")],
    donor: Annotated[str | None, typer.Option(help="Folder, org/name[@rev] or nano:NAME.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="A file, folder, task or hub:OWNER/NAME: one domain; NAME=SOURCE; repeatable."
        ),
    ] = None,
    validation: Annotated[
        list[str] | None, typer.Option(help="Other texts; default: some of --data held out.")
    ] = None,
    target: Annotated[
        Path | None, typer.Option(help="config.json of the target, or its folder.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Or: the donor's config with changes."),
    ] = None,
    arms: Annotated[list[str] | None, typer.Option(metavar="A,B", help="Default: all.")] = None,
    protocols: Annotated[
        list[str] | None, typer.Option(metavar="A,B", help="ffn (as published), trunk (inherited).")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each arm; default 3.")] = None,
    top: Annotated[int | None, typer.Option(help="Experts to choose per layer, K.")] = None,
    score: Annotated[str | None, typer.Option(help="As in identify.")] = None,
    ranks: Annotated[str | None, typer.Option(help="As in decompose.")] = None,
    depth: Annotated[str | None, typer.Option(help="first, uniform or repeat.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of each training.")] = None,
    batch: Annotated[int | None, typer.Option(help="Blocks a step.")] = None,
    block: Annotated[int | None, typer.Option(help="Tokens of a block.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its highest.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between validations.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    keep: Annotated[
        bool | None, typer.Option("--keep-models", help="Save the trained models, to finetune.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, or cpu to stay there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Data for machines on stdout.")] = False,
) -> None:
    """Train a target from every arm's start on the same texts, and compare the losses."""
    require_torch("compare")
    from moegraft.cli.xpert_compare_tables import show_outcome
    from moegraft.report.start_figures import write_start_figures
    from moegraft.xpert.compare import compare_starts
    from moegraft.xpert.compare_recipe import CompareRecipe
    from moegraft.xpert.compare_report import write_report

    flags = {
        "donor": donor,
        "data": data,
        "validation": validation,
        "target": _target(target, change),
        "arms": split_list(arms),
        "protocols": split_list(protocols),
        "num_seeds": seeds,
        "top": top,
        "score": score,
        "ranks": ranks,
        "keep_models": keep,
        "device": device,
    }
    training = dict(
        zip(_TRAINING, (steps, batch, block, learning_rate, eval_every, save_every), strict=True)
    )
    nested = {"training": training, "resizing": {"depth": depth}}
    found = _recipe(CompareRecipe, recipe, flags, nested)
    with show_steps("steps") as on_steps:
        summary = compare_starts(
            found,
            out,
            on_step=lambda now: on_steps(
                (now.number - 1) * now.num_steps + now.step, now.total * now.num_steps
            ),
        )
    if not _is_main_process():
        return
    draw_figures(lambda: write_start_figures(summary, out / "figures"), out)
    write_report(summary, out)
    if as_json:
        write_json(summary)
        return
    show_outcome(stdout_console(), summary)
    say(f"{out / 'report.md'} and figures written")


def _target(file: Path | None, changes: list[str] | None) -> Any:
    if file is not None and changes:
        raise RecipeError("--set: changes the donor's config, and --target names a whole one")
    if not changes:
        return None if file is None else str(file)
    found = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not (key and equals):
            raise RecipeError(f"--set {change}: expected KEY=VALUE, as num_hidden_layers=2")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _recipe(
    kind: Any, file: Path | None, flags: dict[str, Any], nested: dict[str, dict[str, Any]]
) -> Any:
    """The YAML recipe with what the flags say instead."""
    content: dict[str, Any] = {}
    if file is not None:
        content = recipe_content(load_recipe(file, kind))
    content |= {name: value for name, value in flags.items() if value is not None}
    for name, options in nested.items():
        given = {key: value for key, value in options.items() if value is not None}
        if given:
            content[name] = {**content.get(name, {}), **given}
    for name in ("donor", "data", "target"):
        if name not in content:
            raise RecipeError(f"xpert compare: expected a recipe file, or --{name}; see --help")
    return parse_recipe(content, kind, where="xpert compare" if file is None else str(file))


def _is_main_process() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process
