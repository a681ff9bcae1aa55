"""`moegraft xpert identify` and `decompose`: experts that serve every domain, their knowledge."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from moegraft.cli.evaluation import write_json
from moegraft.cli.steps import draw_figures, say, show_steps, write_content
from moegraft.errors import CheckpointError, MissingExtraError, RecipeError

SELECTION = "selection.json"

_Json = Annotated[bool, typer.Option("--json", help="Data for machines on stdout.")]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]

commands = typer.Typer(
    help="Find the experts of a MoE that serve every domain, and start other models from them.",
    no_args_is_help=True,
)


@commands.command()
def identify(
    checkpoint: Annotated[
        str | None, typer.Argument(help="Folder, org/name[@revision] or nano:NAME.")
    ] = None,
    *,
    data: Annotated[
        list[str] | None,
        typer.Option(help="A file, folder or task: one domain; NAME=SOURCE; repeatable."),
    ] = None,
    counts: Annotated[
        Path | None, typer.Option(help="Measured counts instead of CHECKPOINT and --data.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of --counts, where it has several.")] = None,
    against: Annotated[
        str | None, typer.Option(help="Another model of --counts: what moved in its routing.")
    ] = None,
    domain: Annotated[
        list[str] | None, typer.Option(help="Of --counts; repeatable; default: all.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Experts per token, where --counts does not tell.")
    ] = None,
    shared: Annotated[
        int | None, typer.Option(help="Shared experts per layer, where --counts does not tell.")
    ] = None,
    top: Annotated[int, typer.Option(help="Experts to choose per layer, K.")] = 4,
    score: Annotated[
        str, typer.Option(help="a_minus_c, mean, min, a_minus_std or gate_mass.")
    ] = "a_minus_c",
    resamples: Annotated[int, typer.Option(help="Of the bootstrap over text windows.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Of each domain.")] = 100_000,
    window: Annotated[int, typer.Option(help="Tokens of a text window.")] = 1024,
    limit: Annotated[int, typer.Option(help="Items of a task that are read.")] = 500,
    field: Annotated[list[str] | None, typer.Option(help="Of .jsonl records; repeatable.")] = None,
    task_data: Annotated[
        Path | None, typer.Option(help="Folder with the tasks' data as local JSON lines.")
    ] = None,
    include: Annotated[
        list[Path] | None, typer.Option(help="Folder with more task files; repeatable.")
    ] = None,
    device: _Device = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    batch_tokens: Annotated[int, typer.Option(help="Tokens of one forward pass.")] = 4096,
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for selection.json, the figures, and counts to resume from."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Choose the experts of each layer that serve every domain."""
    from moegraft.cli.xpert_tables import show_identification, show_shift
    from moegraft.xpert.identify import identify_experts
    from moegraft.xpert.scores import check_score

    by = check_score(score)
    for name, number in (("max-tokens", max_tokens), ("window", window), ("limit", limit)):
        if number < 2:
            raise RecipeError(f"--{name}: expected a number of at least 2, got {number}")
    if (counts is None) == (checkpoint is None):
        raise RecipeError("xpert identify: expected either CHECKPOINT with --data, or --counts")
    shift: Any = None
    asked = {"model": model, "domain": domain, "top_k": top_k, "shared": shared}
    if counts is not None:
        _refuse({"data": data}, "CHECKPOINT")
        table, shift = _read(counts, against, **asked)
    else:
        assert checkpoint is not None
        _refuse({**asked, "against": against}, "--counts")
        if not data:
            raise RecipeError("xpert identify CHECKPOINT: expected texts, with --data")
        reading = {
            "window": window,
            "max_tokens": max_tokens,
            "limit": limit,
            "fields": tuple(field or ("text",)),
            "data_dir": task_data,
            "include": tuple(include or ()),
        }
        where = {"device": device, "dtype": dtype, "batch_tokens": batch_tokens}
        table = _measure(checkpoint, data, reading, out=out, top=top, **where)
    choice = identify_experts(table, num_best=top, score=by, num_resamples=resamples, seed=seed)
    found = choice.as_dict()
    if shift is not None:
        found["shift"] = {"against": against, "changes": shift}
    if out is not None:
        write_content(out / SELECTION, found)
        _draw(found, out)
    if as_json:
        write_json(found)
        return
    show_identification(Console(), found)
    if shift is not None:
        show_shift(Console(), found)
    if out is not None:
        say(f"{out / SELECTION} and figures written")


def _refuse(given: dict[str, Any], goes_with: str) -> None:
    for name, value in given.items():
        if value:
            flag = name.replace("_", "-")
            raise RecipeError(f"--{flag} has no effect here, it goes with {goes_with}; drop it")


def _read(
    counts: Path,
    against: str | None,
    *,
    model: str | None,
    domain: list[str] | None,
    top_k: int | None,
    shared: int | None,
) -> tuple[Any, Any]:
    """The table of --counts, and what moved in that of --against."""
    from dataclasses import replace

    from moegraft.xpert.counts import read_counts
    from moegraft.xpert.shift import routing_shift

    table = read_counts(counts, model=model, domains=domain or (), top_k=top_k)
    if shared is not None:
        if shared < 0:
            raise RecipeError(f"--shared: expected a number of at least 0, got {shared}")
        table = replace(table, num_shared=shared)
    if against is None:
        return table, None
    other = read_counts(counts, model=against, top_k=top_k or table.top_k)
    return table, routing_shift(table, other)


def _measure(
    checkpoint: str,
    data: list[str],
    reading: dict[str, Any],
    *,
    out: Path | None,
    top: int,
    device: str,
    dtype: str,
    batch_tokens: int,
) -> Any:
    """Counts of a live checkpoint; without --out they are kept in a folder that goes away."""
    import tempfile

    from moegraft.checkpoint import open_checkpoint
    from moegraft.evals.execution import dtype_on
    from moegraft.evals.texts import read_domains
    from moegraft.runtime import Host
    from moegraft.xpert.experts import check_top, moe_layers
    from moegraft.xpert.measure import count_windows

    opened = open_checkpoint(checkpoint)
    moe_layers(opened)
    check_top(opened, top)
    host = Host.load(checkpoint, {}, device=device, dtype=dtype_on(device, dtype))
    if host.tokenizer is None:
        raise CheckpointError(f"{checkpoint}: no tokenizer, and texts cannot be read without one")
    domains = read_domains(data, host.tokenizer, **reading)
    with tempfile.TemporaryDirectory() as folder, show_steps("tokens read") as on_step:
        return count_windows(
            host,
            domains,
            out or Path(folder),
            window=reading["window"],
            batch_tokens=batch_tokens,
            on_step=on_step,
        )


def _draw(found: dict[str, Any], folder: Path) -> None:
    from moegraft.report.expert_figures import write_expert_figures

    draw_figures(lambda: write_expert_figures(found, folder), folder)


@commands.command()
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
    align: Annotated[bool, typer.Option("--align", help="Align neurons first (ours).")] = False,
    safe: Annotated[
        bool, typer.Option("--safe/--faithful", help="Mend an average that collapses (ours).")
    ] = True,
    device: _Device = "auto",
    dtype: Annotated[
        str, typer.Option(help="Of the saved factors: float32, bfloat16, float16.")
    ] = "float32",
    as_json: _Json = False,
) -> None:
    """Decompose the chosen experts and save what they have in common, layer by layer."""
    _require_torch()
    from moegraft.checkpoint import open_checkpoint
    from moegraft.cli.xpert_tables import show_decomposition
    from moegraft.xpert.decompose import Decomposition
    from moegraft.xpert.knowledge import decompose_experts
    from moegraft.xpert.ranks import parse_ranks

    how = Decomposition(method, parse_ranks(ranks), sweeps, align=align, safe=safe)
    chosen = _read_selection(selection)
    where, saved = _torch_names(device, dtype)
    opened = open_checkpoint(donor)
    with show_steps("layers decomposed") as on_step:
        found = decompose_experts(
            opened, chosen, how, out, device=where, dtype=saved, on_step=on_step
        )
    if as_json:
        write_json(found.about)
    else:
        show_decomposition(Console(), found.about)
        say(f"{out} written")


def _require_torch() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise MissingExtraError("xpert decompose needs torch: pip install 'moegraft[xpert]'")


def _read_selection(path: Path) -> dict[str, Any]:
    import json

    file = path / SELECTION if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise RecipeError(f"{file}: no readable selection; make one with `moegraft xpert identify`")
    return content


def _torch_names(device: str, dtype: str) -> tuple[str, Any]:
    """The device, and the dtype of what is saved."""
    import torch

    saved = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in saved:
        raise RecipeError(f"--dtype {dtype}: expected one of {', '.join(saved)}")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu", saved[dtype]
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RecipeError(f"--device {device}: no CUDA device here; use cpu")
    return device, saved[dtype]
