"""`moegraft bar verify`: accept a branch trained anywhere, or name what moved."""

from pathlib import Path
from typing import Annotated

import typer

from moegraft.cli.recipe import RecipeOption
from moegraft.cli.terminal import stdout_console, write_json
from moegraft.errors import RecipeError


def verify(
    branch: Annotated[Path, typer.Argument(help="The trained branch's folder.")],
    *,
    recipe: RecipeOption = None,
    original: Annotated[
        Path | None,
        typer.Option(help="The branch it started from, where the trainer left branch.json behind."),
    ] = None,
    tokens: Annotated[
        int, typer.Option(help="It was trained on elsewhere; for the ledger, with --original.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Data for machines on stdout.")] = False,
) -> None:
    """Check that nothing frozen has moved, so that the branch can be merged."""
    from moegraft.bar.verify import verify_branch
    from moegraft.cli.bar_tables import show_verified

    if tokens < 0:
        raise RecipeError(f"--tokens: expected 0 or more, got {tokens}")
    if tokens and original is None:
        raise RecipeError("--tokens has no effect without --original; drop it")
    found = verify_branch(branch, original, tokens=tokens)
    if as_json:
        write_json(found.as_dict())
    else:
        show_verified(stdout_console(), branch, found)
