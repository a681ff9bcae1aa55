"""The subcommands by name, each loaded when it is called, so that none waits for the others."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

COMMANDS = {
    "inspect": "transfer:inspect",
    "diff": "transfer:diff",
    "transfer": "transfer:transfer",
    "sweep": "sweep:sweep",
    "report": "sweep:report",
    "compare": "compare:compare",
    "gate": "gate:gate",
    "blame": "blame:blame",
    "diagnose": "diagnose:diagnose",
    "profile": "diagnose:profile",
    "select": "select:select",
    "xpert": "xpert:commands",
    "bar": "bar:commands",
    "heal": "heal:heal",
}
"""Where each subcommand is, in the order of `--help`: a module of this package, and in it the name
of a function with typer's annotations (one command) or of a `typer.Typer` (a group of them)."""


class Subcommands(TyperGroup):
    """A group whose commands are imported on first use; `--help` and a misspelt name import all."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, without loading anything."""
        return [*COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command `cmd_name`, loaded now if it was not before; None if there is none."""
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            self.commands[cmd_name] = load_command(cmd_name)
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer does it, which suggests names near a misspelt one from those that are loaded."""
        if args[0] not in COMMANDS:
            self.commands = {name: self.get_command(ctx, name) for name in COMMANDS}
        return super().resolve_command(ctx, args)


def load_command(name: str) -> Any:
    """Import the module of subcommand `name` and build its command from its annotations."""
    module, attribute = COMMANDS[name].split(":")
    found = getattr(import_module(f"moegraft.cli.{module}"), attribute)
    alone = typer.Typer(rich_markup_mode="rich")
    if isinstance(found, typer.Typer):
        alone.add_typer(found, name=name)
    else:
        alone.command(name)(found)
    return typer.main.get_group(alone).commands[name]
