"""`moegraft bar branch`: make a branch of a model for one domain."""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from moegraft.cli.steps import say
from moegraft.cli.terminal import stdout_console, write_json
from moegraft.config import load_recipe, parse_recipe
from moegraft.errors import BranchError, RecipeError

_Json = Annotated[bool, typer.Option("--json", help="Data for machines on stdout.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what it will cost and stop.")]


def branch(
    recipe: Annotated[Path | None, typer.Argument(help="A branch recipe (YAML).")] = None,
    *,
    anchor: Annotated[
        str | None, typer.Option(help="The post-trained model: folder, org/name or nano:NAME.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="What the branch will learn.")] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Whose FFN the domain expert starts from (the paper).")
    ] = None,
    router: Annotated[
        str | None, typer.Option(help="normal (default), zero, or FILE.npy of domain embeddings.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the router; default 0.")] = None,
    new_token: Annotated[
        list[str] | None, typer.Option(help="Add a token to the vocabulary; repeatable.")
    ] = None,
    token_noise: Annotated[
        float | None, typer.Option(help="Noise on new rows, in standard deviations; default 0.")
    ] = None,
    experts: Annotated[
        int | None, typer.Option(help="Experts to append per layer of a MoE; default 1.")
    ] = None,
    domains: Annotated[int, typer.Option(help="Domains of the merged model, for its cost.")] = 1,
    probe: Annotated[
        str | None, typer.Option(help="Text, by paragraphs, on which branch and anchor compare.")
    ] = None,
    toward: Annotated[
        str | None, typer.Option(help="Text of the domain: its tokens reach the appended experts.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of the result, where its sources' differ.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Measure the distance from the anchor.")
    ] = True,
    out: Annotated[Path | None, typer.Option(help="The folder to make.")] = None,
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Make a branch: the anchor, frozen, beside an expert for one domain."""
    from moegraft.bar.branch import BranchRecipe

    flags = {
        "anchor": anchor,
        "domain": domain,
        "pretrained": pretrained,
        "router": router,
        "seed": seed,
        "new_tokens": new_token,
        "token_noise": token_noise,
        "experts": experts,
        "probe": probe,
        "toward": toward,
        "licence": licence,
    }
    found = recipe_of(BranchRecipe, recipe, flags, ("anchor", "domain"), "bar branch")
    if domains < 1:
        raise RecipeError(f"--domains: expected a number of at least 1, got {domains}")
    if out is None and not dry_run:
        raise RecipeError("bar branch: expected --out DIR, or --dry-run to print the cost only")
    out = None if dry_run else out
    _make_branch(found, out, domains=domains, check=check, as_json=as_json)


def recipe_of(
    kind: type[Any], file: Path | None, flags: dict[str, Any], needed: tuple[str, ...], what: str
) -> Any:
    """The recipe of a YAML file, or of flags; not of both.

    Raises:
        RecipeError: both are given, a needed flag is missing, or a value is invalid.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if file is not None:
        if given:
            flag = next(iter(given)).replace("_", "-")
            raise RecipeError(f"{file}: the recipe says it all; drop --{flag} or the file")
        return load_recipe(file, kind)
    for name in needed:
        if name not in given:
            flag = name.replace("_", "-")
            raise RecipeError(f"{what}: expected a recipe file, or --{flag} (and see --help)")
    return parse_recipe(given, kind, where=what)


def _make_branch(
    recipe: Any, out: Path | None, *, domains: int, check: bool, as_json: bool
) -> None:
    from moegraft.bar.distance import read_probes
    from moegraft.cli.bar_tables import show_branch, show_costs

    texts = read_probes(recipe.probe and Path(recipe.probe))
    plan, write = _plan(recipe)
    costs = plan.costs(domains)
    if not as_json:
        show_branch(stdout_console(), plan)
        show_costs(stdout_console(), costs)
    for warning in plan.warnings:
        say(f"warning: {warning}")
    manifest = None
    if out is not None:
        manifest = write(plan, out)
        say(f"wrote {out}")
        if check:
            manifest = _measured(plan, out, manifest, texts)
    if as_json:
        about = None if manifest is None else manifest.as_dict()
        write_json({"costs": costs, "warnings": list(plan.warnings), "branch": about})


def _plan(recipe: Any) -> tuple[Any, Any]:
    """The plan for a dense anchor or a MoE, and the function that carries it out."""
    from moegraft.checkpoint import open_checkpoint

    if open_checkpoint(recipe.anchor).family.is_moe:
        from moegraft.bar.append import plan_append, write_append

        return plan_append(recipe), write_append
    from moegraft.bar.branch import plan_branch, write_branch

    return plan_branch(recipe), write_branch


def _measured(plan: Any, out: Path, manifest: Any, texts: tuple[str, ...]) -> Any:
    """The manifest with the distance from the anchor, also in the folder."""
    from moegraft.bar.branch import with_distance
    from moegraft.bar.distance import distance, lacking_memory
    from moegraft.bar.manifest import write_manifest
    from moegraft.checkpoint import open_checkpoint
    from moegraft.cli.bar_tables import distance_line

    written = open_checkpoint(out)
    lacking = lacking_memory(written)
    if lacking is not None:
        say(f"distance from the anchor not measured: {lacking}")
        return manifest
    known = min(manifest.tokens.values(), default=None)
    try:
        found = distance(plan.anchor, written, texts, known=known)
    except BranchError:
        shutil.rmtree(written.path)
        raise
    manifest = with_distance(manifest, found)
    write_manifest(out, manifest)
    say(distance_line(found, expected_equal=plan.starts_equal))
    return manifest
