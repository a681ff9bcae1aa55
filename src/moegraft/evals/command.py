"""A condition that is a command of the user's: it gets a model and items, and writes scores.

A YAML file with `command:` and `items:` is such a condition. The command is started with the
items that are still to be scored as JSON lines on its standard input, and writes one line
`{"item": ..., "score": ...}` to its standard output as soon as an item is scored. It knows nothing
of resuming or sharding: what it has written is kept, and it is only ever asked for the rest.
"""

import json
import math
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import yaml

from moegraft.config import STRICT, load_recipe
from moegraft.errors import EvalDataError, RecipeError, RunError
from moegraft.evals.condition import Condition, Item, canonical_order, content_hash, doc_hashes

KIND = "command"
"""The kind of such conditions, beside `generate` and `choose`."""

MODEL = "{model}"
"""Stands in a command for the checkpoint's folder, or for the URL of a server."""


@dataclass(frozen=True, slots=True)
class CommandRecipe:
    """The YAML file of a command condition.

    Raises:
        RecipeError: the command has no place for the model.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    command: str
    """Program and arguments, without a shell; `{model}` is the model, and the working directory
    is the YAML file's folder."""
    items: str
    """JSON lines, one object per item, relative to the YAML file."""
    cluster: str | None = None
    """A field that several items share, such as a passage."""
    gold: str | None = None
    """A field to show as the reference answer in reports."""
    version: str = "1"
    """Part of every result's key: change it when the command changes what it does."""

    def __post_init__(self) -> None:
        if MODEL not in self.command:
            raise RecipeError(f"command: has no {MODEL} in it, so it cannot know the model")


@dataclass(frozen=True, slots=True)
class Command:
    """A command on one model."""

    model: str
    """What `{model}` stands for."""

    def rows(self, condition: Condition, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
        """Run the command of `condition` on `items`; one row per item, as they are written.

        The command, and what it has started, is ended when the iterator is closed early. Where
        this process is killed outright, it ends at its next write.

        Raises:
            RunError: it fails, leaves items out, or writes something else than scores.
        """
        known = {_name(item): item for item in items}
        words = [word.replace(MODEL, self.model) for word in shlex.split(condition.task.command)]
        with _started(words, condition, items) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip():
                    yield _row(condition.name, line, known)
            code = process.wait()
        if code or known:
            what = f"ended with status {code}" if code else "ended"
            raise RunError(
                f"{condition.name}: the command {what} with {len(known)} of {len(items)} items not "
                "scored; what it wrote is kept, the same command line goes on from there"
            )


@dataclass(frozen=True, slots=True)
class CommandTask:
    """What a command condition keeps where others keep their lm-eval task."""

    command: str
    folder: Path


def is_command(name: str) -> bool:
    """Whether a condition's name is a YAML file with `command:` in it."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return False
    with suppress(OSError, ValueError, yaml.YAMLError):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return isinstance(content, Mapping) and "command" in content
    return False


def load_command(name: str | Path, *, limit: int | None = None, seed: int = 0) -> Condition:
    """Load a command condition; its name is the file's without the suffix.

    Items are ordered and cut as those of other conditions. An item is known to the command by its
    field `item`, or by its content hash, which is then added under that name.

    Raises:
        RecipeError: the file does not fit.
        EvalDataError: the items are missing, damaged, or two have the same name.
    """
    path = Path(name)
    recipe = load_recipe(path, CommandRecipe)
    docs = _read_items(path.parent / recipe.items)
    hashes = doc_hashes(docs)
    names = [str(doc.get("item", own)) for doc, own in zip(docs, hashes, strict=True)]
    if len(set(names)) < len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise EvalDataError(f"{path.parent / recipe.items}: two items are called {twice!r}")
    chosen = canonical_order(hashes, seed)[:limit]
    items = tuple(
        Item(
            hash=hashes[i],
            doc={"item": names[i], **docs[i]},
            prompt="",
            prompt_ids=(),
            prompt_hash=content_hash(docs[i]),
            gold=str(docs[i].get(recipe.gold, "")) if recipe.gold else "",
            cluster=content_hash(docs[i].get(recipe.cluster)) if recipe.cluster else None,
        )
        for i in chosen
    )
    return Condition(
        name=path.stem,
        task=CommandTask(recipe.command, path.parent.resolve()),
        kind=KIND,
        items=items,
        num_total=len(docs),
        settings={"kind": KIND, "command": recipe.command, "version": recipe.version},
        primary="score",
        binary=False,
    )


def _read_items(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        docs = [json.loads(line) for line in lines if line.strip()]
    except FileNotFoundError:
        raise EvalDataError(f"{path}: no such file of items") from None
    except (OSError, ValueError) as error:
        raise EvalDataError(f"{path}: not JSON lines: {' '.join(str(error).split())}") from None
    if not docs or not all(isinstance(doc, dict) for doc in docs):
        raise EvalDataError(f"{path}: expected JSON objects, one per line")
    return docs


@contextmanager
def _started(
    words: Sequence[str], condition: Condition, items: Sequence[Item]
) -> Iterator["subprocess.Popen[str]"]:
    """The running command; ended, and its children with it, when the block is left early."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as lines:
        for item in items:
            lines.write(json.dumps(item.doc, default=str) + "\n")
        lines.seek(0)
        process = _start(words, condition, lines)
        try:
            yield process
        finally:
            if process.poll() is None:
                _end(process)
            assert process.stdout is not None
            process.stdout.close()


def _start(words: Sequence[str], condition: Condition, lines: IO[str]) -> "subprocess.Popen[str]":
    try:
        return subprocess.Popen(
            words,
            stdin=lines,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            cwd=condition.task.folder,
            process_group=0,
        )
    except OSError as error:
        raise RunError(f"{condition.name}: {words[0]}: cannot be run: {error.strerror}") from None


def _end(process: "subprocess.Popen[str]") -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
            return


def _row(condition: str, line: str, known: dict[str, Item]) -> dict[str, Any]:
    """The row of one line; takes its item out of `known`."""
    shown = line.strip() if len(line) < 80 else f"{line[:77].strip()}..."
    try:
        said = json.loads(line)
        name, score = str(said["item"]), float(said["score"])
    except (ValueError, KeyError, TypeError):
        raise RunError(
            f'{condition}: the command wrote {shown!r}, expected {{"item": ..., "score": ...}}; '
            "let it write everything else to standard error"
        ) from None
    if name not in known:
        raise RunError(f"{condition}: the command scored item {name!r} twice or unasked")
    if not math.isfinite(score):
        raise RunError(f"{condition}: the command's score of item {name!r} is {score}")
    item = known.pop(name)
    output = said.get("output")
    return {
        "item": item.hash,
        "score": score,
        "scores": {"score": score},
        "prompt": item.prompt_hash,
        "cluster": item.cluster,
        "gold": item.gold,
        "num_prompt_tokens": 0,
        "output": None if output is None else str(output),
        "extracted": None,
        "gold_logprob": None,
        "num_tokens": 0,
        "truncated": False,
        "looped": False,
    }


def _name(item: Item) -> str:
    return str(item.doc["item"])
