"""Item results on disk: append-only JSON lines that survive a kill at any byte.

A cell's results stand in `RUN/<kind>/<configuration>/<condition>.jsonl`, one row per item. A
process that runs as one shard of several writes to a file of its own under `RUN/state/parts`, so
that no two processes ever append to one file (network file systems do not order such appends);
`settle_cell` joins the parts into the cell's file, in canonical order, once the cell is complete.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from moegraft.errors import OutputError, RunError

KINDS = ("items", "confirm", "control")
"""Folders of a run: the sweep, its confirmation on full sets, the A/A control of the host."""

Row = dict[str, Any]

_SECONDS_BETWEEN_FLUSHES = 5.0


def cell_path(run_dir: Path, configuration: str, condition: str, kind: str = "items") -> Path:
    """Where the rows of one cell stand; a condition such as `arc/5-shot` has a sub-folder.

    Raises:
        RunError: a name that would leave the run directory.
    """
    assert kind in KINDS, kind
    for name, words in ((configuration, 1), (condition, 9)):
        parts = PurePosixPath(name).parts
        if not 1 <= len(parts) <= words or {"/", ".", ".."} & set(parts) or "\0" in name:
            raise RunError(f"{name!r} cannot name a folder of results; rename it")
    return run_dir / kind / configuration / f"{condition}.jsonl"


def part_path(
    run_dir: Path, configuration: str, condition: str, kind: str, shard: tuple[int, int]
) -> Path:
    """Where shard (i, n) of a cell writes: the cell's own file when there is only one shard."""
    whole = cell_path(run_dir, configuration, condition, kind)
    if shard == (1, 1):
        return whole
    return _parts_folder(run_dir, whole) / f"{shard[0]}-of-{shard[1]}.jsonl"


def list_cells(run_dir: Path, kind: str = "items") -> list[tuple[str, str]]:
    """(configuration, condition) of every cell with results, finished or not, by name."""
    roots = [(run_dir / kind, ".jsonl"), (run_dir / "state" / "parts" / kind, "")]
    found: set[tuple[str, str]] = set()
    for root, suffix in roots:
        for path in root.rglob("*.jsonl"):
            place = path.relative_to(root) if suffix else path.parent.relative_to(root)
            configuration, *condition = place.parts
            found.add((configuration, "/".join(condition).removesuffix(suffix)))
    return sorted(found)


def read_rows(
    run_dir: Path, configuration: str, condition: str, kind: str = "items"
) -> dict[str, Row]:
    """Rows of a cell by item hash, from its file and from the parts of unfinished shards.

    Safe while other processes write: parts are read before the file that they are joined into,
    and a torn last line is left out.

    Raises:
        RunError: a line that is not the last one is damaged.
    """
    whole = cell_path(run_dir, configuration, condition, kind)
    rows: dict[str, Row] = {}
    for path in (*sorted(_parts_folder(run_dir, whole).glob("*.jsonl")), whole):
        for row in _read_file(path):
            rows.setdefault(row["item"], row)
    return rows


def read_prompts(run_dir: Path, condition: str) -> dict[str, Row]:
    """What was asked, by item hash, from `RUN/prompts`; empty where the run kept none.

    Raises:
        RunError: a line is damaged.
    """
    return {row["item"]: row for row in _read_file(run_dir / "prompts" / f"{condition}.jsonl")}


def settle_cell(
    run_dir: Path,
    configuration: str,
    condition: str,
    kind: str = "items",
    *,
    order: Sequence[str],
    num_required: int,
) -> bool:
    """Join the parts of a cell once the first `num_required` items of `order` have a row.

    Rows then stand in `order` (item hashes). The file is replaced atomically, and only when its
    bytes change; then the parts are removed. Call it under the run's merge lock. Returns whether
    the cell is complete.
    """
    whole = cell_path(run_dir, configuration, condition, kind)
    rows = read_rows(run_dir, configuration, condition, kind)
    if any(item not in rows for item in order[:num_required]):
        return False
    known = [rows.pop(item) for item in order if item in rows]
    write_rows(whole, [*known, *rows.values()])
    folder = _parts_folder(run_dir, whole)
    for part in folder.glob("*.jsonl"):
        part.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
    return True


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace `path` atomically by `rows`; does nothing when it already holds these bytes."""
    content = b"".join(_encode(row) for row in rows)
    if path.exists() and path.read_bytes() == content:
        return
    write_atomically(path, content)


def write_atomically(path: Path, content: bytes) -> None:
    """Write aside, flush to disk, rename; a kill leaves the old file or the new one.

    Raises:
        OutputError: the disk is full or not writable.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None


class ItemLog:
    """An append-only file of rows with exactly one writer; use it as a context manager.

    Opening cuts a torn last line off. Each row is one `write` of a whole line, so that a kill of
    the process tears at most the last one; every few seconds, and on closing, the file is flushed
    to disk against a loss of power.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise OutputError(f"{path}: cannot be opened: {error.strerror or error}") from None
        self._flushed = time.monotonic()
        os.ftruncate(self._file, _whole_lines(path.read_bytes()))

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; it is in the file when this returns.

        Raises:
            OutputError: the disk is full or not writable.
        """
        line = memoryview(_encode(row))
        try:
            while line:
                line = line[os.write(self._file, line) :]
            if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
                os.fsync(self._file)
                self._flushed = time.monotonic()
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """Flush to disk and close."""
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)

    def __enter__(self) -> "ItemLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _parts_folder(run_dir: Path, whole: Path) -> Path:
    return run_dir / "state" / "parts" / whole.relative_to(run_dir).with_suffix("")


def _encode(row: Mapping[str, Any]) -> bytes:
    # ASCII, because some readers also end lines at U+2028 and U+0085.
    return json.dumps(_finite(row), allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no infinities; a broken configuration may produce them
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    return value


def _whole_lines(content: bytes) -> int:
    return content.rfind(b"\n") + 1


def _read_file(path: Path) -> Iterator[Row]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    lines = content[: _whole_lines(content)].split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("item"), str):
            raise RunError(
                f"{path}: line {number} is damaged; delete that line (its item is then scored "
                "again) or the file, and run the same command"
            )
        yield row
