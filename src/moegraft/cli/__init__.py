"""The `moegraft` command: one thin function per subcommand, and the only place that exits."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C ends it with status 130, also while modules are loading."""
    try:
        from moegraft.cli import app

        app.main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
