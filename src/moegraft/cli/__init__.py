"""The `moegraft` command: one thin function per subcommand, and the only place that exits."""

from moegraft.cli.app import main

__all__ = ["main"]
