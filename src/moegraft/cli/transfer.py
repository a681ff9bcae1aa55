"""`moegraft inspect`, `diff` and `transfer`."""

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of component transfer to `app`."""
