"""Records of a JSONL or Parquet file, a folder of them, or a data set on the Hub."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moegraft.errors import TrainDataError

SUFFIXES = (".jsonl", ".json", ".parquet")
"""What a file of records may end in; `.json` holds JSON lines, or one list."""


def read_records(source: str | Path, *, split: str = "train") -> Iterator[dict[str, Any]]:
    """Yield records one after another; nothing is copied to a cache.

    Args:
        source: a file, a folder (its files in the order of their names), or `OWNER/NAME` or
            `OWNER/NAME:CONFIG` on the Hub.
        split: of a data set on the Hub.

    Raises:
        TrainDataError: nothing can be read there, or a line is no JSON object.
    """
    path = Path(source).expanduser()
    if not path.exists():
        if path.suffix in SUFFIXES or str(source).count("/") != 1:
            raise TrainDataError(f"{source}: no such file or folder")
        name, _, config = str(source).partition(":")
        yield from _streamed(str(source), path=name, name=config or None, split=split)
        return
    for file in record_files(path):
        if file.suffix == ".parquet":
            yield from _streamed(
                str(file), path="parquet", data_files={"train": str(file)}, split="train"
            )
        else:
            yield from _json_lines(file)


def record_files(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """`path`, or the files in it that end in one of `suffixes`.

    Raises:
        TrainDataError: there is none.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in suffixes)
        if not files:
            raise TrainDataError(f"{path}: no text files (expected {', '.join(suffixes)})")
        return files
    if path.suffix not in suffixes:
        raise TrainDataError(f"{path}: expected one of {', '.join(suffixes)}")
    return [path]


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8") as lines:
            if file.suffix == ".json" and lines.read(1) == "[":
                yield from _listed(file)
                return
            lines.seek(0)
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _object(f"{file}: line {number}", json.loads(line))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, TrainDataError):
            raise
        raise TrainDataError(f"{file}: cannot be read: {_line(error)}") from None


def _listed(file: Path) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(json.loads(file.read_text(encoding="utf-8")), 1):
        yield _object(f"{file}: record {number}", record)


def _object(where: str, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise TrainDataError(f"{where}: expected a JSON object, got {type(record).__name__}")
    return record


def _streamed(where: str, **load: Any) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        yield from load_dataset(**load, streaming=True)
    except (OSError, ValueError, DatasetsError) as error:
        if isinstance(error, TrainDataError):
            raise
        raise TrainDataError(f"{where}: cannot be read: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
