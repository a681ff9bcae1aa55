"""`moegraft bar merge`: make one MoE of an anchor and its branches, or a baseline."""

from pathlib import Path
from typing import Annotated, Any

import typer

from moegraft.cli.bar_branch import recipe_of
from moegraft.cli.steps import say
from moegraft.cli.terminal import stdout_console, write_json
from moegraft.errors import RecipeError


def merge(
    recipe: Annotated[Path | None, typer.Argument(help="A merge recipe (YAML).")] = None,
    *,
    anchor: Annotated[
        str | None, typer.Option(help="What the branches grew from: folder, org/name or nano:NAME.")
    ] = None,
    branch: Annotated[
        list[str] | None,
        typer.Option(help="A branch's folder; repeatable, in the order of the experts."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="bar (default), or for dense models average, btx, btx-released."),
    ] = None,
    shared: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[COMPONENT=]POLICY",
            help="mean (default), changed, anchor, equal, first or sum:WEIGHT; repeatable.",
        ),
    ] = None,
    as_released: Annotated[
        bool | None,
        typer.Option("--as-released", help="Average anchor experts that moved in branches."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Experts active per token; default all.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the new router of btx; default 0.")] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of the result, where its sources' differ.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to make.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check that everything fits, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Data for machines on stdout.")] = False,
) -> None:
    """Merge branches: experts side by side, shared weights averaged, router rows stacked."""
    from moegraft.bar.merge import MergeRecipe

    flags: dict[str, Any] = {
        "anchor": anchor,
        "branches": branch,
        "method": method,
        "as_released": as_released,
        "top_k": top_k,
        "seed": seed,
        "licence": licence,
        **_policies(shared),
    }
    found = recipe_of(MergeRecipe, recipe, flags, ("anchor", "branches"), "bar merge")
    if out is None and not dry_run:
        raise RecipeError("bar merge: expected --out DIR, or --dry-run to check only")
    merge_and_show(found, None if dry_run else out, as_json=as_json)


def _policies(given: list[str] | None) -> dict[str, Any]:
    """`--shared` options as fields of the recipe."""
    found: dict[str, Any] = {}
    for value in given or ():
        component, equals, policy = value.rpartition("=")
        by_component = found.setdefault("shared_by", {}) if equals else {}
        if component in by_component:
            raise RecipeError(f"--shared {value}: {component} was given a policy already")
        if equals:
            by_component[component] = policy
        elif "shared" in found:
            raise RecipeError(f"--shared {value}: a default policy was given already")
        else:
            found["shared"] = policy
    return found


def merge_and_show(recipe: Any, out: Path | None, *, as_json: bool, is_last: bool = True) -> None:
    """Merge, and print what is made of what; without `out` only check that it fits.

    What to do next is told where this is the last step of the command.
    """
    from moegraft.bar.average import by_component
    from moegraft.bar.merge import plan_merge, write_merge
    from moegraft.cli.bar_tables import show_divergence, show_merge
    from moegraft.cli.transfer import show_bytes

    plan = plan_merge(recipe)
    for warning in plan.warnings:
        say(f"warning: {warning}")
    console = stdout_console()
    if not as_json:
        show_merge(console, plan)
    record = None
    if out is not None:
        with show_bytes("merge", sum(entry.nbytes for entry in plan.entries)) as on_bytes:
            record = write_merge(plan, out, on_bytes=on_bytes)
        if is_last and not plan.is_dense:
            say(f"wrote {out}; its router is untrained: next is `moegraft bar route {out}`")
        elif is_last:
            say(f"wrote {out}")
    moved = by_component(plan.shared.moved)
    if as_json:
        write_json({"merge": None if record is None else record.as_dict(), "moved": moved})
    elif moved:
        show_divergence(console, moved)
