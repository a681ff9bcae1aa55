"""Text files of item results, read strictly: every fault is one line with file and place."""

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moegraft.errors import ResultsError

Fields = dict[str, Any]


def csv_lines(path: Path) -> Iterator[tuple[int, Fields]]:
    """Line number and fields of every row of a CSV (or tab-separated) file with a header."""
    delimiter = "\t" if path.suffix == ".tsv" else ","
    before = csv.field_size_limit(2**31 - 1)  # outputs may be long
    try:
        reader = csv.DictReader(io.StringIO(_read(path), newline=""), delimiter=delimiter)
        names = [name.strip() for name in reader.fieldnames or ()]
        for name in names:
            if names.count(name) > 1:
                raise ResultsError(f"{path}: column {name!r} stands twice; rename one of them")
        for row in reader:
            if None in row or None in row.values():
                where = f"{path}: line {reader.line_num}"
                raise ResultsError(f"{where} has too many or too few columns")
            yield reader.line_num, dict(zip(names, row.values(), strict=True))
    except csv.Error as error:
        raise ResultsError(f"{path}: not readable as CSV: {error}") from None
    finally:
        csv.field_size_limit(before)


def json_lines(path: Path) -> Iterator[tuple[int, Fields]]:
    """Line number and object of every line that is not empty."""
    # Not splitlines(): generated text may hold U+2028, which would end a line there.
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            yield number, _object(line, f"{path}: line {number}")


def json_object(path: Path) -> Fields:
    """The one JSON object of a file."""
    return _object(_read(path), str(path))


def number(value: Any, where: str, name: str) -> float:
    """A finite number. Raises ResultsError that names place and field for anything else."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise ResultsError(f"{where}: {name} is {_short(value)}, expected a number") from None
    if not math.isfinite(found):
        raise ResultsError(f"{where}: {name} is {found}, expected a finite number")
    return found


def _object(text: str, where: str) -> Fields:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{where}: not valid JSON ({' '.join(str(error).split())})") from None
    if not isinstance(found, dict):
        raise ResultsError(f"{where}: expected a JSON object, got {type(found).__name__}")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: cannot be read: {error}") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
