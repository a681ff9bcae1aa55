"""Assembles the subcommands and turns errors that users cause into one line."""

import sys

import typer
from rich.console import Console

import moegraft
from moegraft.cli import blame, compare, diagnose, gate, select, sweep, transfer, xpert
from moegraft.errors import MoegraftError

app = typer.Typer(
    name="moegraft",
    help="Compose post-trained Mixture-of-Experts language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
transfer.register(app)
sweep.register(app)
compare.register(app)
gate.register(app)
blame.register(app)
diagnose.register(app)
select.register(app)
xpert.register(app)


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
    "peft": "train",
    "trl": "train",
}
"""By package, the extra that brings it; the base install has none of them."""


def main() -> None:
    """Run the command line; exit 2 on an error that the user can mend."""
    errors = Console(stderr=True, soft_wrap=True)
    try:
        app()
    except MoegraftError as error:
        errors.print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False)
        sys.exit(2)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRA_OF:
            raise
        told = f"this needs {package}: pip install 'moegraft[{_EXTRA_OF[package]}]'"
        errors.print(f"[bold red]error:[/] {_escape(told)}", highlight=False)
        sys.exit(2)


def _escape(text: str) -> str:
    return text.replace("[", "\\[")
