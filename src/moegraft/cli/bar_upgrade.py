"""`moegraft bar add`, `upgrade` and `remove`: change one domain of a merged model."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from moegraft.cli.bar_merge import merge_and_show
from moegraft.cli.bar_route import train_and_show
from moegraft.cli.evaluation import execution_of
from moegraft.cli.gate import EXIT_CODES, read_suite, report_gate, test_models
from moegraft.cli.recipe import RecipeOption
from moegraft.cli.router_options import (
    Data,
    Device,
    HeldOut,
    Length,
    device_of,
    sources_of,
)
from moegraft.cli.steps import say
from moegraft.config import load_recipe, parse_recipe
from moegraft.errors import OutputError, RecipeError


def _command(change: str, what: str, told: str) -> Callable[..., None]:
    """The command for one kind of change; they differ in their second argument only."""

    def run(
        merged: Annotated[Path, typer.Argument(help="The merged model that is deployed now.")],
        subject: Annotated[str, typer.Argument(metavar=what.upper(), help=f"The {what}.")],
        *,
        recipe: RecipeOption = None,
        out: Annotated[Path, typer.Option(help="The folder to make.")],
        data: Data = None,
        share: Annotated[
            float | None, typer.Option(help="Of each source's records; default 0.05.")
        ] = None,
        held_out: HeldOut = None,
        length: Length = None,
        tuning: Annotated[
            Path | None, typer.Option(help="YAML: epochs, learning_rate, batch, z, seed, ...")
        ] = None,
        routing: Annotated[
            bool, typer.Option("--route/--no-route", help="Train the routers after the merge.")
        ] = True,
        where: Annotated[
            list[str] | None,
            typer.Option(metavar="DOMAIN=FOLDER", help="Where a branch, or the anchor, is now."),
        ] = None,
        licence: Annotated[
            str | None, typer.Option(help="Of the result, where its sources' differ.")
        ] = None,
        suite: Annotated[
            Path | None, typer.Option(help="YAML: conditions and the losses to rule out.")
        ] = None,
        against: Annotated[
            list[str] | None,
            typer.Option(help="What the gate compares with; default: MERGED and the anchor."),
        ] = None,
        task_data: Annotated[
            Path | None, typer.Option(help="Folder with the suite's data as JSON lines.")
        ] = None,
        include: Annotated[
            list[Path] | None, typer.Option(help="Folder with more task files; repeatable.")
        ] = None,
        device: Device = "auto",
    ) -> None:
        from moegraft.bar.upgrade import plan_revision
        from moegraft.checkpoint.staging import check_apart

        out = out.expanduser()
        if routing and not data:
            raise RecipeError(
                f"bar {change}: expected --data to train the routers on, or --no-route"
            )
        settings = {
            "data": sources_of(data),
            "share": share,
            "held_out": held_out,
            "length": length,
            "tuning": None if tuning is None else _tuning(tuning),
        }
        if suite is not None:
            read_suite(suite)  # before hours go into the model that it tests
        check_apart(out, [merged])
        revision = plan_revision(
            merged,
            change,  # type: ignore[arg-type]
            branch=None if change == "remove" else subject,
            domain=subject if change == "remove" else None,
            moved=_places(where),
            licence=licence,
        )
        if routing:
            _merge_and_route(revision, out, settings, device_of(device))
        else:
            merge_and_show(revision.recipe, out, as_json=False)
        if suite is None:
            say("no --suite was given, so nothing tells what this model has lost")
            return
        how = _execution(task_data, include, device)
        models = against or [str(merged), revision.anchor]
        codes = [_gate(old, out, place, suite, how) for place, old in enumerate(models)]
        lost = EXIT_CODES["regressed"]
        raise typer.Exit(lost if lost in codes else max(codes))

    run.__doc__ = told
    return run


add = _command("add", "branch", "Add a domain: merge its branch to the others, train the routers.")
upgrade = _command("upgrade", "branch", "Upgrade a domain: a new branch takes its old one's place.")
remove = _command("remove", "domain", "Remove a domain: merge the other branches anew.")


def _places(given: list[str] | None) -> dict[str, str]:
    """`--where` options: folders by domain."""
    for value in given or ():
        if not all(value.partition("=")):
            raise RecipeError(f"--where {value}: expected DOMAIN=FOLDER")
    return sources_of(given) or {}


def _tuning(file: Path) -> dict[str, Any]:
    from moegraft.bar.tune import Tuning
    from moegraft.config import recipe_content

    return recipe_content(load_recipe(file, Tuning))


def _merge_and_route(revision: Any, out: Path, settings: dict[str, Any], device: str) -> None:
    """Merge beside `out`, train the routers into `out`, and let the untrained merge go."""
    from moegraft.bar.merge import is_written, plan_merge
    from moegraft.bar.record import MERGE
    from moegraft.bar.route import ROUTED, RouteRecipe
    from moegraft.checkpoint.staging import check_target

    if not (out / ROUTED).is_file():
        check_target(out, [Path(source) for source in revision.recipe.branches])
    beside = out.with_name(f"{out.name}.merged")
    given = {name: value for name, value in settings.items() if value is not None}
    recipe = parse_recipe({"model": str(beside), **given}, RouteRecipe, where="router training")
    if not (beside / MERGE).is_file():
        merge_and_show(revision.recipe, beside, as_json=False, is_last=False)
    elif not is_written(plan_merge(revision.recipe), beside):
        raise OutputError(f"{beside}: holds another merge; remove it, or name another --out")
    train_and_show(recipe, out, device=device)
    shutil.rmtree(beside)


def _execution(data: Path | None, include: Sequence[Path] | None, device: str) -> Any:
    return execution_of(
        data=data,
        include=include,
        shard="1/1",
        device=device,
        memory_budget=None,
        batch_tokens=None,
        batch_rows=None,
    )


def _gate(old: str, new: Path, place: int, suite: Path, how: Any) -> int:
    """Test the new model against an old one; the gate's exit code."""
    run = new.with_name(f"{new.name}.gate") / str(place)
    names = [f"old={old}", f"new={new}"]
    found = test_models(names, suite, how, {}, out=run, different_prompts=True)
    if found is not None:
        say(f"against {old}: {found['verdict']}")
    return report_gate(found, None, False) if found is not None else EXIT_CODES["inconclusive"]
