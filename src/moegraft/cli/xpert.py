"""`moegraft xpert`: choose experts, refine them, start other models from them, see if it helps."""

import typer

from moegraft.cli import (
    xpert_compare,
    xpert_decompose,
    xpert_finetune,
    xpert_identify,
    xpert_init,
)

commands = typer.Typer(
    help="Find the experts of a MoE that serve every domain, and start other models from them.",
    no_args_is_help=True,
)
commands.command()(xpert_identify.identify)
commands.command()(xpert_decompose.decompose)
commands.command()(xpert_init.init)
commands.command()(xpert_compare.compare)
commands.command()(xpert_finetune.finetune)
