"""`moegraft xpert init`: a checkpoint of a new model that starts from expert knowledge."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from moegraft.cli.recipe import RecipeOption
from moegraft.cli.steps import say, show_steps
from moegraft.cli.terminal import stdout_console, write_json
from moegraft.cli.wide_table import print_note, print_wide
from moegraft.cli.xpert_decompose import require_torch
from moegraft.errors import CheckpointError, RecipeError

_SOURCES = {
    "knowledge": "adapted from knowledge",
    "donor": "inherited from the donor",
    "fresh": "fresh random numbers",
}


def init(
    knowledge: Annotated[Path, typer.Argument(help="A folder of `moegraft xpert decompose`.")],
    *,
    target: Annotated[Path, typer.Option(help="config.json of the new model, or its folder.")],
    out: Annotated[Path, typer.Option(help="A new folder for the checkpoint.")],
    depth: Annotated[
        str,
        typer.Option(help="Layers from the front (first), spread (uniform), or in turn (repeat)."),
    ] = "first",
    grow: Annotated[
        str, typer.Option(help="Wider FFNs: duplicate neurons, or concat groups.")
    ] = "duplicate",
    select: Annotated[
        str, typer.Option(help="Narrower ones keep rows by leverage, or evenly spaced (even).")
    ] = "leverage",
    couple: Annotated[
        bool, typer.Option("--coupled/--uncoupled", help="Gate, up and down keep the same neurons.")
    ] = True,
    scale: Annotated[str, typer.Option(help="none, fan_in or match_std.")] = "none",
    outputs: Annotated[
        str, typer.Option(help="Of experts or groups side by side: their mean or sum.")
    ] = "mean",
    inherit: Annotated[
        str, typer.Option(help="none, trunk, or some of embedding,attention,norm,lm_head.")
    ] = "none",
    donor: Annotated[
        str | None, typer.Option(help="The MoE of the knowledge, for --inherit and its tokenizer.")
    ] = None,
    fit: Annotated[
        list[str] | None,
        typer.Option(help="Texts to fit down projections to the donor's FFNs on (ours)."),
    ] = None,
    fit_tokens: Annotated[int, typer.Option(help="Of each domain of --fit.")] = 10_000,
    device: Annotated[str, typer.Option(help="Of the donor, for --fit.")] = "auto",
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or Hub name, instead of the donor's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that starts fresh.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    recipe: RecipeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Data for machines on stdout.")] = False,
) -> None:
    """Start a new dense or MoE model from knowledge, as a checkpoint that transformers loads."""
    require_torch("init")
    from moegraft.checkpoint import open_checkpoint
    from moegraft.xpert.adapt import initialise_target
    from moegraft.xpert.inherit import parse_inherit
    from moegraft.xpert.knowledge import open_knowledge
    from moegraft.xpert.resize import Resizing
    from moegraft.xpert.start import Adaptation, Start
    from moegraft.xpert.target import read_target

    if fit_tokens < 2:
        raise RecipeError(f"--fit-tokens: expected a number of at least 2, got {fit_tokens}")
    resizing = Resizing(depth, grow, select, couple=couple, scale=scale, outputs=outputs)
    how = Adaptation(resizing, parse_inherit(inherit), seed, dtype)
    opened = open_checkpoint(donor) if donor is not None else None
    start = Start(read_target(target), how, open_knowledge(knowledge), opened)
    if fit:
        if opened is None or not {"embedding", "attention"} <= set(how.inherit):
            raise RecipeError(
                "--fit: expected --donor and --inherit trunk: without the donor's embeddings and "
                "attention its FFNs are no model for the target's"
            )
        _fit(start, opened, fit, fit_tokens, device)
    with show_steps("tensors written") as on_step:
        about = initialise_target(start, out, donor=opened, tokenizer=tokenizer, on_step=on_step)
    if as_json:
        write_json(about)
        return
    _show(stdout_console(), about)
    if about["tokenizer"] is None:
        why = "none was named" if opened is None else "the donor's does not fit or there is none"
        say(f"No tokenizer in {out}: {why}; give one with --tokenizer.")
    say(f"{out} written")


def _fit(start: Any, donor: Any, sources: list[str], num_tokens: int, device: str) -> None:
    from moegraft.evals.texts import read_domains
    from moegraft.runtime import Host
    from moegraft.runtime.tokens import load_tokenizer

    tokenizer = load_tokenizer(donor)
    if tokenizer is None:
        raise CheckpointError(f"{donor.source}: no tokenizer, and texts cannot be read without one")
    domains = read_domains(sources, tokenizer, max_tokens=num_tokens)
    host = Host.load(donor.source, {}, device=device)
    with show_steps("tokens read") as on_step:
        start.fit(host, [text for own in domains.values() for text in own], on_step=on_step)


def _show(console: Console, about: dict[str, Any]) -> None:
    """What the parameters start from."""
    numbers = about["num_parameters"]
    total = sum(numbers.values())
    rows = [
        (_SOURCES[name], f"{number:,}", f"{100 * number / total:.1f}")
        for name, number in numbers.items()
    ]
    title = f"{about['target']} that starts from {about['knowledge']['donor']['name']}"
    print_wide(console, title, ("parameters", "number", "share %"), rows)
    layers = ", ".join(map(str, about["mapped"]["layers"]))
    print_note(console, f"Donor's layer behind each: {layers}")
    if about["fitted"] is not None:
        shares = ", ".join(f"{100 * value:.0f}" for value in about["fitted"].values())
        print_note(console, f"% of the donor's FFN output given: {shares}")
