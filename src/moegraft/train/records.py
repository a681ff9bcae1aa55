"""Records of a JSONL or Parquet file, a folder of them, or a data set on the Hub."""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from moegraft.errors import TrainDataError

SUFFIXES = (".jsonl", ".json", ".parquet")
"""What a file of records may end in; `.json` holds JSON lines, or one list."""
_SURROGATE = re.compile(r"\\u[dD][89A-Fa-f]")


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
    """Records of JSON lines; of a `.json` that begins with a bracket, of its list."""
    where = str(file)
    try:
        with file.open("rb") as lines:
            if file.suffix == ".json" and _begins_with_list(lines):
                yield from _listed(where, file.read_bytes().removeprefix(BOM_UTF8).decode())
                return
            lines.seek(0)
            for number, line in enumerate(lines, 1):
                where = f"{file}: line {number}"
                text = line.removeprefix(BOM_UTF8 if number == 1 else b"").decode()
                if text.strip():
                    yield _object(where, json.loads(text), text)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, TrainDataError):
            raise
        raise TrainDataError(f"{where}: cannot be read: {_reason(error)}") from None


def _begins_with_list(lines: IO[bytes]) -> bool:
    text = (line.removeprefix(BOM_UTF8).lstrip() for line in lines)
    return next((line for line in text if line), b"").startswith(b"[")


def _listed(where: str, text: str) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(json.loads(text), 1):
        yield _object(f"{where}: record {number}", record, text)


def _object(where: str, record: Any, text: str) -> dict[str, Any]:
    """The record, if it is one that can be tokenized."""
    if not isinstance(record, dict):
        raise TrainDataError(f"{where}: expected a JSON object, got {type(record).__name__}")
    if _SURROGATE.search(text):
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise TrainDataError(f"{where}: holds half a surrogate pair, no text") from None
    return record


def _reason(error: BaseException) -> str:
    """What is wrong; json's own line number counts within one record."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (character {error.pos + 1})"
    return _line(error)


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
