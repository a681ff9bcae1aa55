"""Where commands print: consoles that take names as they are, and data as JSON."""

import errno
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def stdout_console() -> Console:
    """Standard output; `:x:` in a name stays `:x:` and becomes no picture."""
    return Console(emoji=False)


def stderr_console(*, soft_wrap: bool = True) -> Console:
    """Standard error; its long lines are for the terminal to break, unless it shows bars."""
    return Console(stderr=True, soft_wrap=soft_wrap, emoji=False)


def write_json(content: Any) -> None:
    """Data for machines, on stdout; escaped where stdout could not hold every character."""
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=plain) + "\n")


def make_printable() -> None:
    """Let stdout and stderr print a question mark for what their encoding lacks, or be closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure") and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def expand_home(argument: str) -> str:
    """`--out=~/x` and `NAME=~/x` as shells leave them, with the home folder for the tilde."""
    head, equals, rest = argument.rpartition("=~/")
    return f"{head}={Path.home()}/{rest}" if equals else argument


def show_whole_flags() -> None:
    """Let a long flag go on in the next line of a narrow `--help`; typer would cut it off."""
    from rich.text import Text
    from typer import rich_utils

    class Whole(rich_utils.OptionHighlighter):
        def __call__(self, text: str | Text) -> Text:
            found = super().__call__(text)
            if isinstance(text, str):
                found.overflow = "fold"
            return found

    rich_utils.highlighter = Whole()
    rich_utils.negative_highlighter = Whole()


def told_of_full_disk(error: OSError) -> str:
    """One line about a full disk, wherever it was met.

    Raises:
        OSError: it is another error.
    """
    if error.errno not in _DISK_FULL:
        raise error
    if error.filename is None:
        drop_stdout()
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}cannot be written: {error.strerror}; free some space and run it again"


def drop_stdout() -> None:
    """Forget what is left in stdout's buffer; it would fail once more when Python exits."""
    with suppress(OSError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
