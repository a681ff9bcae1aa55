"""Counts of single text windows in an append-only file, so that a long profile resumes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moegraft.errors import EvalDataError, OutputError, RunError
from moegraft.xpert.counts import RoutingTable, Windows

FILE = "windows.jsonl"
_WHAT = "routing counts by text window"


def is_window_file(text: str) -> bool:
    """Whether a file with this content was written here."""
    return text.startswith(json.dumps({"what": _WHAT})[:-1])


class WindowStore:
    """An append-only file of windows: a header that says what was counted, then one line each."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Open `path` to go on, or begin it.

        Args:
            path: of the file; its folder is made.
            about: what is counted (checkpoint, layers, texts); must equal that of the file.

        Raises:
            RunError: the file holds the counts of something else.
            OutputError: it cannot be written.
        """
        self._path = path
        header = {"what": _WHAT, "schema": 1, **about}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
            if lines and json.loads(lines[0]) != header:
                raise RunError(
                    f"{path}: holds counts of another checkpoint, other texts or settings; "
                    "name another --out or remove it"
                )
            self.done = {_name(json.loads(line)) for line in lines[1:]}
            if not lines:
                path.write_bytes(_line(header))
            elif sum(map(len, lines)) + len(lines) < path.stat().st_size:
                path.write_bytes(b"\n".join(lines) + b"\n")  # drops a line that was cut off
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}") from None
        except ValueError:
            raise RunError(f"{path}: damaged; remove it to count again") from None

    def add(self, row: Mapping[str, Any]) -> None:
        """Append the counts of a window: domain, window, num_tokens, counts and mass."""
        try:
            with self._path.open("ab") as file:
                file.write(_line(row))
        except OSError as error:
            raise OutputError(f"{self._path}: {error.strerror}") from None
        self.done.add(_name(row))

    def table(self) -> RoutingTable:
        """Everything that was counted so far."""
        return read_windows(self._path, self._path.read_text(encoding="utf-8"))


def read_windows(path: Path, text: str) -> RoutingTable:
    """The table that a window file adds up to, windows included.

    Raises:
        EvalDataError: damaged, or no window was finished.
    """
    try:
        header, *rows = [json.loads(line) for line in text.split("\n")[:-1]]
        by_domain: dict[str, list[Mapping[str, Any]]] = {name: [] for name in header["domains"]}
        for row in rows:
            by_domain[row["domain"]].append(row)
        empty = [name for name, own in by_domain.items() if not own]
        if empty:
            raise EvalDataError(f"{path}: no window of domain {empty[0]!r} was finished")
        if len({_name(row) for row in rows}) < len(rows):
            raise EvalDataError(f"{path}: a window was counted twice; remove the file, count again")
        windows = tuple(_windows(own) for own in by_domain.values())
        return RoutingTable(
            source=header["checkpoint"],
            domains=tuple(by_domain),
            layers=tuple(header["layers"]),
            top_k=header["top_k"],
            num_tokens=np.array([int(own.num_tokens.sum()) for own in windows]),
            counts=np.array([own.counts.sum(axis=0) for own in windows]),
            mass=np.array([own.mass.sum(axis=0) for own in windows]),
            windows=windows,
            fingerprint=header["fingerprint"],
            num_shared=header["num_shared"],
        )
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, EvalDataError):
            raise
        raise EvalDataError(f"{path}: damaged: {error!r}") from None


def _windows(rows: Sequence[Mapping[str, Any]]) -> Windows:
    rows = sorted(rows, key=lambda row: row["window"])
    return Windows(
        num_tokens=np.array([row["num_tokens"] for row in rows], dtype=np.int64),
        counts=np.array([row["counts"] for row in rows], dtype=np.int64),
        mass=np.array([row["mass"] for row in rows], dtype=float),
    )


def _name(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["domain"], row["window"]


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(", ", ": ")).encode() + b"\n"
