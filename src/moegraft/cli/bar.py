"""`moegraft bar`: branch a model for one domain, merge branches, train the router, upgrade one."""

import typer

from moegraft.cli import (
    bar_adapt,
    bar_branch,
    bar_merge,
    bar_report,
    bar_route,
    bar_upgrade,
    bar_verify,
)

commands = typer.Typer(
    help="Train domains apart as branches of one model, and merge them as one MoE.",
    no_args_is_help=True,
)
commands.command()(bar_branch.branch)
commands.command()(bar_adapt.adapt)
commands.command()(bar_verify.verify)
commands.command()(bar_merge.merge)
commands.command()(bar_route.route)
commands.command("add")(bar_upgrade.add)
commands.command("upgrade")(bar_upgrade.upgrade)
commands.command("remove")(bar_upgrade.remove)
commands.command()(bar_report.report)
