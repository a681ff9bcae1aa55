"""`moegraft xpert identify`: the experts of each layer that serve every domain."""

from pathlib import Path
from typing import Annotated, Any

import typer

from moegraft.cli.options import DeviceMapOption, parse_device_map
from moegraft.cli.recipe import RecipeOption
from moegraft.cli.steps import draw_figures, say, show_steps, write_content
from moegraft.cli.terminal import stdout_console, write_json
from moegraft.errors import CheckpointError, RecipeError


def identify(
    checkpoint: Annotated[
        str | None, typer.Argument(help="Folder, org/name[@revision] or nano:NAME.")
    ] = None,
    *,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="A file, folder, task or hub:OWNER/NAME: one domain; NAME=SOURCE; repeatable."
        ),
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
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    device_map: DeviceMapOption = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    batch_tokens: Annotated[int, typer.Option(help="Tokens of one forward pass.")] = 4096,
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for selection.json, the figures, and counts to resume from."),
    ] = None,
    recipe: RecipeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Data for machines on stdout.")] = False,
) -> None:
    """Choose the experts of each layer that serve every domain."""
    from moegraft.cli.xpert_tables import show_identification, show_shift
    from moegraft.xpert.identify import identify_experts
    from moegraft.xpert.scores import check_score
    from moegraft.xpert.selection import SELECTION

    by = check_score(score)
    for name, number, least in (
        *(("max-tokens", max_tokens, 2), ("window", window, 2), ("limit", limit, 2)),
        *(("batch-tokens", batch_tokens, 1), ("resamples", resamples, 0), ("seed", seed, 0)),
        *(("top-k", top_k, 1), ("shared", shared, 0)),
    ):
        if number is not None and number < least:
            raise RecipeError(f"--{name}: expected a number of at least {least}, got {number}")
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
        table = _measure(
            checkpoint,
            data,
            reading,
            out=out,
            top=top,
            device=device,
            device_map=parse_device_map(device_map),
            dtype=dtype,
            batch_tokens=batch_tokens,
        )
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
    show_identification(stdout_console(), found)
    if shift is not None:
        show_shift(stdout_console(), found)
    if out is not None:
        say(f"{out / SELECTION} and figures written")


def _refuse(given: dict[str, Any], goes_with: str) -> None:
    for name, value in given.items():
        if value is not None:
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
    device_map: Any,
    dtype: str,
    batch_tokens: int,
) -> Any:
    """Counts of a live checkpoint; without --out they are kept in a folder that goes away."""
    import tempfile

    from moegraft.checkpoint import open_checkpoint
    from moegraft.evals.execution import dtype_on
    from moegraft.evals.lock import writer_lock
    from moegraft.evals.texts import read_domains
    from moegraft.runtime import Host
    from moegraft.runtime.tokens import load_tokenizer
    from moegraft.xpert.experts import check_top, moe_layers
    from moegraft.xpert.measure import count_windows

    opened = open_checkpoint(checkpoint)
    moe_layers(opened)
    check_top(opened, top)
    tokenizer = load_tokenizer(opened)
    if tokenizer is None:
        raise CheckpointError(f"{checkpoint}: no tokenizer, and texts cannot be read without one")
    domains = read_domains(data, tokenizer, **reading)
    dtype = dtype_on(device, dtype, device_map)
    host = Host.load(checkpoint, {}, device=device, device_map=device_map, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder, show_steps("tokens read") as on_step:
        place = out or Path(folder)
        with writer_lock(place, (1, 1)):
            return count_windows(
                host,
                domains,
                place,
                window=reading["window"],
                batch_tokens=batch_tokens,
                on_step=on_step,
            )


def _draw(found: dict[str, Any], folder: Path) -> None:
    from moegraft.report.expert_figures import write_expert_figures

    draw_figures(lambda: write_expert_figures(found, folder), folder)
