"""`moegraft bar report`: what a merged model has cost, against retraining."""

from pathlib import Path
from typing import Annotated

import typer

from moegraft.cli.recipe import RecipeOption
from moegraft.cli.steps import draw_figures, say, write_content
from moegraft.cli.terminal import stdout_console, write_json

LEDGER = "ledger.json"


def report(
    merged: Annotated[Path, typer.Argument(help="A folder of `bar merge` or `bar route`.")],
    *,
    recipe: RecipeOption = None,
    router_share: Annotated[
        float, typer.Option(help="Of all tokens, where no router training is recorded.")
    ] = 0.05,
    out: Annotated[Path | None, typer.Option(help="A folder for ledger.json and figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Data for machines on stdout.")] = False,
) -> None:
    """Count tokens, FLOPs and device hours of every stage, and what retraining would cost."""
    from moegraft.bar.ledger import count_costs
    from moegraft.cli.bar_tables import show_ledger
    from moegraft.report.ledger_figure import write_ledger_figure

    found = count_costs(merged, router_share=router_share)
    if out is not None:
        out = out.expanduser()
        write_content(out / LEDGER, found)
        draw_figures(lambda: write_ledger_figure(found, out / "figures"), out)
        say(f"wrote {out / LEDGER}")
    if as_json:
        write_json(found)
    else:
        show_ledger(stdout_console(), found)
