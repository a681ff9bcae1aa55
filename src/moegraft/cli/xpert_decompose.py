"""`moegraft xpert decompose`: what the chosen experts have in common, as knowledge on disk."""

from pathlib import Path
from typing import Annotated, Any

import typer

from moegraft.cli.recipe import RecipeOption
from moegraft.cli.steps import say, show_steps
from moegraft.cli.terminal import stdout_console, write_json
from moegraft.errors import MissingExtraError, RecipeError


def decompose(
    donor: Annotated[str, typer.Argument(help="Folder, org/name[@revision] or nano:NAME.")],
    *,
    selection: Annotated[Path, typer.Option(help="selection.json of identify, or its folder.")],
    out: Annotated[Path, typer.Option(help="A new folder for the knowledge.")],
    method: Annotated[
        str, typer.Option(help="tucker, or svd, mean, single, concat to compare.")
    ] = "tucker",
    ranks: Annotated[
        str,
        typer.Option(
            help="half, published, full, energy=0.9, or NEURONS,HIDDEN,EXPERTS as 512,1024,2."
        ),
    ] = "half",
    sweeps: Annotated[int, typer.Option(help="Of the iteration; 0 is the plain HOSVD.")] = 2,
    groups: Annotated[
        int, typer.Option(help="Cut the experts into groups, each decomposed apart (ours).")
    ] = 1,
    align: Annotated[bool, typer.Option("--align", help="Align neurons first (ours).")] = False,
    safe: Annotated[
        bool, typer.Option("--safe/--faithful", help="Mend an average that collapses (ours).")
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Of the saved factors: float32, bfloat16, float16.")
    ] = "float32",
    recipe: RecipeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Data for machines on stdout.")] = False,
) -> None:
    """Decompose the chosen experts and save what they have in common, layer by layer."""
    require_torch("decompose")
    from moegraft.checkpoint import open_checkpoint
    from moegraft.cli.xpert_tables import show_decomposition
    from moegraft.xpert.decompose import Decomposition
    from moegraft.xpert.knowledge import decompose_experts
    from moegraft.xpert.ranks import parse_ranks
    from moegraft.xpert.selection import read_selection

    how = Decomposition(
        method, parse_ranks(ranks), sweeps, align=align, safe=safe, num_groups=groups
    )
    chosen = read_selection(selection)
    where, saved = _torch_names(device, dtype)
    opened = open_checkpoint(donor)
    with show_steps("layers decomposed") as on_step:
        found = decompose_experts(
            opened, chosen, how, out, device=where, dtype=saved, on_step=on_step
        )
    if as_json:
        write_json(found.about)
    else:
        show_decomposition(stdout_console(), found.about)
        say(f"{out} written")


def require_torch(command: str) -> None:
    """Raises MissingExtraError where torch or transformers is missing."""
    from importlib.util import find_spec

    if find_spec("torch") is None or find_spec("transformers") is None:
        raise MissingExtraError(f"xpert {command} needs torch: pip install 'moegraft[xpert]'")


def _torch_names(device: str, dtype: str) -> tuple[str, Any]:
    """The device, and the dtype of what is saved."""
    import torch

    from moegraft.runtime.placement import find_device

    saved = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in saved:
        raise RecipeError(f"--dtype {dtype}: expected one of {', '.join(saved)}")
    return str(find_device(device)), saved[dtype]
