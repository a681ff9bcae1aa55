"""Assembles the subcommands and turns errors that users cause into one line."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

import moegraft
from moegraft.cli.commands import Subcommands
from moegraft.cli.terminal import (
    drop_stdout,
    expand_home,
    make_printable,
    show_whole_flags,
    stderr_console,
    told_of_full_disk,
)
from moegraft.errors import MoegraftError

app = typer.Typer(
    name="moegraft",
    cls=Subcommands,
    help="Compose post-trained Mixture-of-Experts language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool | None) -> None:
    if wanted:
        sys.stdout.write(f"moegraft {moegraft.__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: bool | None = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Compose post-trained Mixture-of-Experts language models."""


_EXTRA_OF = {
    "accelerate": "eval",
    "datasets": "eval",
    "lm_eval": "eval",
    "matplotlib": "eval",
    "psutil": "eval",
    "torch": "eval",
    "transformers": "eval",
    "trl": "train",
}
"""By package, the extra that brings it; the base install has none of them."""


_UsageError: Any = typer.BadParameter.__base__
"""What typer raises for flags and arguments that it does not know; it has no name of its own."""

_GATED = [["bar", change] for change in ("add", "upgrade", "remove")]
"""Commands that end with a gate, beside `gate`."""

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""


def main() -> None:
    """Run the command line; exit 2 (behind a gate: 3) on an error that the user can mend."""
    make_printable()
    sys.argv[1:] = map(expand_home, sys.argv[1:])
    if "--help" in sys.argv:
        show_whole_flags()
    try:
        _run()
    except BrokenPipeError:  # nobody reads on, as with `| head`
        drop_stdout()
        sys.exit(1)
    except OSError as error:
        _exit_with(told_of_full_disk(error))


def _run() -> None:
    try:
        with _telling():
            app()
    except SystemExit as stop:
        sys.stdout.flush()  # here a full disk can still be told of
        if isinstance(stop.__context__, _UsageError):
            sys.exit(_wrong_input())
        # typer ends so on Ctrl-C, without a word; a command that has told raises `from None`.
        cause = getattr(stop.__context__, "__cause__", None)
        if stop.code == INTERRUPTED and isinstance(cause, KeyboardInterrupt):
            sys.stderr.write("interrupted\n")
        raise
    except MoegraftError as error:
        _exit_with(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRA_OF:
            raise
        _exit_with(f"this needs {package}: pip install 'moegraft[{_EXTRA_OF[package]}]'")


class _Stderr(logging.Handler):
    """Messages of libraries on whatever stderr is now: progress bars put themselves there."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{record.getMessage()}\n")


@contextmanager
def _telling() -> Iterator[None]:
    """Show warnings, and what will be loaded where and how much memory it takes."""
    everything, runtime = logging.getLogger("moegraft"), logging.getLogger("moegraft.runtime")
    shown, level = _Stderr(), runtime.level
    everything.addHandler(shown)
    runtime.setLevel(logging.INFO)
    try:
        yield
    finally:
        everything.removeHandler(shown)
        runtime.setLevel(level)


def _exit_with(told: str) -> NoReturn:
    escaped = told.replace("[", "\\[")
    stderr_console().print(f"[bold red]error:[/] {escaped}", highlight=False)
    sys.exit(_wrong_input())


def _wrong_input() -> int:
    """The exit status; 1 and 2 are verdicts of the gate."""
    command = sys.argv[1:3]
    return 3 if command[:1] == ["gate"] or command in _GATED else 2
