"""What several subcommands share: parsing of options, and progress of an evaluation."""

import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from moegraft.cli.terminal import stderr_console
from moegraft.config import load_yaml
from moegraft.errors import RecipeError

DeviceMapOption = Annotated[
    str | None,
    typer.Option(
        help="auto, balanced, sequential, or a YAML file of MODULE: DEVICE; several GPUs."
    ),
]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_STAGES = {"control": "A/A control", "confirm": "confirmation"}
_SECONDS_BETWEEN_LINES = 15.0


def split_list(values: Sequence[str] | None) -> list[str] | None:
    """Values of a repeatable option, each a list with commas (not those within brackets)."""
    if values is None:
        return None
    return [part.strip() for value in values for part in re.split(r",(?![^\[]*\])", value)]


def parse_limit(text: str | None) -> int | str | None:
    """`--limit`: a number or `all`."""
    if text is None or text == "all":
        return text
    if not text.isdecimal():
        raise RecipeError(f"--limit: expected a number or 'all', got {text!r}")
    return int(text)


def parse_weights(texts: list[str] | None) -> dict[str, float] | None:
    """`--weights A=2,B=1`."""
    if texts is None:
        return None
    found: dict[str, float] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        name, equals, number = part.rpartition("=")
        if not equals or not name:
            raise RecipeError(f"--weights {part}: expected CONDITION=NUMBER")
        if name in found:
            raise RecipeError(f"--weights: {name!r} is named twice")
        try:
            found[name] = float(number)
        except ValueError:
            raise RecipeError(f"--weights {part}: expected a number, got {number!r}") from None
    return found


def parse_shard(text: str) -> tuple[int, int]:
    """`--shard`: i/n."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise RecipeError(f"--shard: expected i/n with i from 1 to n, as in 2/8, got {text!r}")
    return int(match[1]), int(match[2])


def parse_bytes(text: str) -> int:
    """`--memory-budget`: 16GB, 24GiB, or a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if not match:
        raise RecipeError(f"--memory-budget: expected a size such as 16GB or 24GiB, got {text!r}")
    unit = _UNITS[match[2].upper()]
    power = {1: 0, 10**3: 1, 10**6: 2, 10**9: 3, 10**12: 4}[unit]
    return int(float(match[1]) * (1024**power if match[3] else unit))


def parse_device_map(text: str | None) -> str | dict[str, str | int] | None:
    """`--device-map`: a name, or a YAML file with a device for each module."""
    if text is None or not Path(text).suffix:
        return text
    import yaml

    try:
        found = load_yaml(Path(text).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise RecipeError(f"--device-map {text}: cannot be read: {said}") from None
    if not isinstance(found, dict) or not all(
        isinstance(module, str) and isinstance(device, str | int)
        for module, device in found.items()
    ):
        raise RecipeError(f"--device-map {text}: expected lines such as 'model.layers.0: cuda:0'")
    return found


def parse_json(option: str, text: str | None) -> dict[str, Any] | None:
    """An option that takes a JSON object."""
    try:
        found = None if text is None else json.loads(text)
    except ValueError:
        found = text
    if found is not None and not isinstance(found, dict):
        raise RecipeError(f"{option}: expected a JSON object, got {text}")
    return found


def command_line() -> str:
    """What was typed, for the report."""
    return shlex.join(["moegraft", *sys.argv[1:]])


@contextmanager
def show_progress(what: str = "sweep") -> Iterator[Callable[[Any], None]]:
    """A bar with rate and time left on a terminal; elsewhere a line now and then.

    Args:
        what: names the stage in which items are scored, before control and confirmation.
    """
    console = stderr_console(soft_wrap=False)
    stages = {"items": what, **_STAGES}
    if not console.is_terminal:
        yield _Lines(console, stages)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        yield _Bars(bar, stages)


class _Bars:
    """One bar per stage of the sweep."""

    def __init__(self, bar: Progress, stages: Mapping[str, str]) -> None:
        self._bar = bar
        self._stages = stages
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, now: Any) -> None:
        if now.kind not in self._tasks:
            self._tasks[now.kind] = self._bar.add_task(now.kind, total=now.total, rate="")
        task = self._tasks[now.kind]
        speed = self._bar.tasks[task].speed
        self._bar.update(
            task,
            completed=now.done,
            description=f"{self._stages[now.kind]}: {now.condition}, {now.configuration}",
            rate=f"{speed:.1f} items/s" if speed else "",
        )


class _Lines:
    """A line of progress now and then, for logs."""

    def __init__(self, console: Console, stages: Mapping[str, str]) -> None:
        self._console = console
        self._stages = stages
        self._started: dict[str, float] = {}
        self._told = time.monotonic()

    def __call__(self, now: Any) -> None:
        moment = time.monotonic()
        began = self._started.setdefault(now.kind, moment)
        if now.done < now.total and moment - self._told < _SECONDS_BETWEEN_LINES:
            return
        self._told = moment
        rate = (now.done - 1) / max(moment - began, 1e-9)
        left = (now.total - now.done) / rate if rate else 0.0
        self._console.print(
            f"{self._stages[now.kind]}: {now.done} of {now.total} items, {rate:.1f} items/s, "
            f"{left / 60:.0f} min left ({now.condition}, {now.configuration})",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
