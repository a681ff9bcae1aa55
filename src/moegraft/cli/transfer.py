"""`moegraft inspect`, `diff` and `transfer`."""

import gc
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from moegraft.checkpoint import Checkpoint, open_checkpoint
from moegraft.cli.terminal import stderr_console, stdout_console, write_json
from moegraft.config import load_recipe, parse_recipe
from moegraft.errors import RecipeError
from moegraft.transfer.recipe import TransferRecipe

_Map = Annotated[Path | None, typer.Option("--map", help="Names of a family not in the catalogue.")]
_Unknown = Annotated[
    str | None, typer.Option(help="Tensors that fit no pattern: 'error', or keep the 'host's.")
]
_Json = Annotated[bool, typer.Option("--json", help="Data for machines on stdout.")]


def inspect(
    checkpoint: Annotated[str, typer.Argument(help="Folder, org/name[@revision] or nano:NAME.")],
    family_map: _Map = None,
    unknown: _Unknown = None,
    as_json: _Json = False,
) -> None:
    """Show what a checkpoint holds: components, sizes, dtypes, layout, tokenizer."""
    from moegraft.cli.transfer_tables import show_summary
    from moegraft.transfer.summary import summarize_checkpoint

    found = summarize_checkpoint(_open(checkpoint, family_map, unknown))
    if as_json:
        write_json(found)
    else:
        show_summary(stdout_console(), found)


def diff(
    host: Annotated[str, typer.Argument(help="Folder, org/name[@revision] or nano:NAME.")],
    donor: Annotated[str, typer.Argument(help="The other checkpoint.")],
    *,
    layers: Annotated[bool, typer.Option("--layers", help="One row per layer too.")] = False,
    family_map: _Map = None,
    unknown: _Unknown = None,
    as_json: _Json = False,
) -> None:
    """Compare two checkpoints: do they fit, and how far are they apart?"""
    from moegraft.cli.transfer_tables import show_comparison
    from moegraft.transfer.diff import compare_checkpoints

    ours, theirs = (_open(source, family_map, unknown) for source in (host, donor))
    with show_bytes("compare", ours.num_bytes) as on_bytes:
        found = compare_checkpoints(ours, theirs, on_bytes=on_bytes)
    if as_json:
        rows = asdict(found) | {"transferable": found.transferable}
        for name in ("totals", "distances"):
            rows[name] = [row._asdict() for row in getattr(found, name)]
        write_json(rows)
    else:
        show_comparison(stdout_console(), found, layers=layers)


def transfer(
    recipe: Annotated[Path | None, typer.Argument(help="A transfer recipe (YAML).")] = None,
    *,
    host: Annotated[str | None, typer.Option(help="The checkpoint that receives.")] = None,
    donor: Annotated[str | None, typer.Option(help="The checkpoint that gives.")] = None,
    components: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="E.g. experts,attention or 'experts[0-7,12]'."),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="E.g. 8:16 or 0,3,5; default: all.")] = None,
    experts: Annotated[str | None, typer.Option(help="E.g. 0-7,12; default: all.")] = None,
    rule: Annotated[str | None, typer.Option(help="take (default), linear or slerp.")] = None,
    weight: Annotated[float | None, typer.Option(help="The donor's share in a mix.")] = None,
    qk_norm: Annotated[
        str | None, typer.Option(help="q/k norms move with 'attention', or on their 'own'.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to make.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every byte, record content hashes.")
    ] = False,
    cast: Annotated[
        bool | None, typer.Option("--cast", help="Convert other dtypes (not byte-exact).")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the result.")] = None,
    family_map: _Map = None,
    unknown: _Unknown = None,
    push: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Upload to the Hub.")] = None,
    as_json: _Json = False,
) -> None:
    """Move components, layers or single experts from a donor into a host."""
    wanted = {
        "host": host,
        "donor": donor,
        "components": components,
        "layers": layers,
        "experts": experts,
        "rule": rule,
        "weight": weight,
        "qk_norm": qk_norm,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    found = _recipe_of_flags(given) if recipe is None else _recipe_of_file(recipe, given)
    common = {"cast": cast, "licence": licence, "unknown": unknown}
    common["map"] = None if family_map is None else str(family_map)
    changes = {name: value for name, value in common.items() if value is not None}
    found = parse_recipe(_plain(found) | changes, TransferRecipe, where=str(recipe or "transfer"))
    with _without_collection():
        _carry_out(found, out, dry_run=dry_run, verify=verify, push=push, as_json=as_json)


def _carry_out(
    recipe: TransferRecipe,
    out: Path | None,
    *,
    dry_run: bool,
    verify: bool,
    push: str | None,
    as_json: bool,
) -> None:
    from moegraft.cli.transfer_tables import show_plan
    from moegraft.transfer.apply import apply_plan
    from moegraft.transfer.plan import plan_transfer
    from moegraft.transfer.provenance import provenance
    from moegraft.transfer.publish import check_push, find_licence
    from moegraft.transfer.publish import push as upload

    _check_output(out, dry_run=dry_run, verify=verify, push=push)
    family_map = None if recipe.map is None else Path(recipe.map)
    opened = _open(recipe.host, family_map, recipe.unknown)
    donors = {name: _open(s, family_map, recipe.unknown) for name, s in recipe.donors.items()}
    plan = plan_transfer(recipe, opened, donors)
    licence = find_licence(plan)
    if as_json:
        record = provenance(plan, licence.identifier)
        write_json(record | {"byte_ranges": plan.num_ranges, "out": out and str(out)})
    else:
        show_plan(stdout_console(), plan)
    if dry_run or out is None:
        return
    if push is not None:
        check_push(push)
    started = time.monotonic()
    with show_bytes("write", plan.nbytes) as on_bytes:
        apply_plan(plan, out, verify=verify, on_bytes=on_bytes)
    seconds = time.monotonic() - started
    notes = stderr_console()
    checked = ", every moved byte verified" if verify else ""
    notes.print(f"wrote {out}: {decimal(plan.nbytes)} in {seconds:.1f} s{checked}", markup=False)
    if push is not None:
        notes.print(f"uploaded: {upload(out, push)}", markup=False)


def _check_output(out: Path | None, *, dry_run: bool, verify: bool, push: str | None) -> None:
    if out is None and not dry_run:
        raise RecipeError("transfer: expected --out DIR, or --dry-run to print the plan only")
    idle = [name for name, given in (("--verify", verify), ("--push", push)) if given]
    if dry_run and idle:
        stderr_console().print(f"warning: {idle[0]} has no effect with --dry-run")


def _recipe_of_file(file: Path, given: dict[str, Any]) -> TransferRecipe:
    if given:
        flag = "--" + next(iter(given)).replace("_", "-")
        raise RecipeError(f"{file}: what to move stands in the recipe; drop {flag} or the file")
    return load_recipe(file, TransferRecipe)


def _recipe_of_flags(given: dict[str, Any]) -> TransferRecipe:
    for name in ("host", "donor", "components"):
        if name not in given:
            raise RecipeError(f"transfer: expected a recipe file, or --{name} (and see --help)")
    names = re.findall(r"[^,\[]+(?:\[[^\]]*\]?)?", given["components"])
    selection = {"components": [name.strip() for name in names]}
    keys = ("layers", "experts", "rule", "weight")
    selection |= {name: given[name] for name in keys if name in given}
    content = {"host": given["host"], "donors": {"donor": given["donor"]}}
    content |= {"qk_norm": given["qk_norm"]} if "qk_norm" in given else {}
    return parse_recipe(content | {"selections": [selection]}, TransferRecipe, where="transfer")


def _plain(recipe: TransferRecipe) -> dict[str, Any]:
    return {name: value for name, value in asdict(recipe).items() if value is not None}


def _open(source: str, family_map: Path | None, unknown: str | None) -> Checkpoint:
    if unknown not in (None, "error", "host"):
        raise RecipeError(f"--unknown: expected 'error' or 'host', got {unknown!r}")
    kept = "host" if unknown == "host" else "error"
    return open_checkpoint(source, family_map=family_map, unknown=kept)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Switch the cycle collector off: 19 thousand tensors are a million objects and no cycle.

    Collecting takes a third of the time of such a transfer.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what is left need not be looked through once more when Python exits
        if was_on:
            gc.enable()


@contextmanager
def show_bytes(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on stderr, where that is a terminal."""
    console = stderr_console(soft_wrap=False)
    if not console.is_terminal:
        yield lambda count: None
        return
    from rich import progress as rich

    columns = (
        rich.TextColumn(what),
        rich.BarColumn(bar_width=None),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
