"""What commands of counted steps share: progress, notes, figures, and data as files."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moegraft.cli.terminal import stderr_console
from moegraft.errors import OutputError

_SECONDS_BETWEEN_LINES = 15.0


def write_content(path: Path, content: Any) -> None:
    """Data as a JSON file, whole or not at all; one clear line if it cannot be written."""
    from moegraft.evals.store import write_atomically

    write_atomically(path, (json.dumps(content, ensure_ascii=False) + "\n").encode())


def draw_figures(draw: Callable[[], Any], folder: Path) -> None:
    """Draw into `folder`; without matplotlib say what is missing."""
    from moegraft.report.figures import can_draw

    if not can_draw():
        say("figures are left out because matplotlib is missing: pip install 'moegraft[eval]'")
        return
    try:
        draw()
    except OSError as error:
        raise OutputError(f"{folder}: figures not written: {error.strerror}") from None


def say(line: str) -> None:
    """A line for the user on stderr."""
    stderr_console().print(line, highlight=False, markup=False)


@contextmanager
def show_steps(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with time left on a terminal, elsewhere a line now and then; in one process of many."""
    console = stderr_console(soft_wrap=False)
    if int(os.environ.get("RANK", "0")):
        yield lambda done, total: None
        return
    if not console.is_terminal:
        yield _lines(what)
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(what: str) -> Callable[[int, int], None]:
    """Tells the time left from the steps of this training; fewer steps done begin another one."""
    began = seen = told = time.monotonic()
    first = last = 0

    def on_step(done: int, total: int) -> None:
        nonlocal began, seen, told, first, last
        now = time.monotonic()
        if done <= last or not last:
            began, first = seen, done - 1
        seen, last = now, done
        if done < total and now - told < _SECONDS_BETWEEN_LINES:
            return
        told = now
        left = (now - began) * (total - done) / max(done - first, 1)
        say(f"{done:,} of {total:,} {what}, {left / 60:.0f} min left")

    return on_step
