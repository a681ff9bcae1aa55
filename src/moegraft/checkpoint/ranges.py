"""The byte-range engine: runs of source bytes into a file, by the kernel where it can.

On file systems that share blocks (XFS, btrfs) `copy_file_range` shares them instead of copying,
when source and destination have the same phase modulo the block size. Elsewhere large runs are
written past the page cache (`direct`), and the rest by `copy_file_range`, which copies inside the
kernel. Where a call is missing or refused, the bytes go through a buffer.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from moegraft.checkpoint.direct import Move, aligned_part, shares_blocks, write_direct
from moegraft.errors import CheckpointError

BLOCK_BYTES = 4096
"""Block size of the file systems that share blocks; also the page size."""

_CHUNK_BYTES = 256 << 20
_BUFFER_BYTES = 4 << 20
_REFUSED = {
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EPERM,  # seccomp filters of older container runtimes
    errno.ETXTBSY,
}


class ByteRange(NamedTuple):
    """Bytes that already stand in a file."""

    file: Path
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Produced:
    """Bytes that are computed when their turn comes; held in memory only while written."""

    nbytes: int
    produce: Callable[[], Any]
    """Returns bytes, or any C-contiguous buffer, of exactly `nbytes`."""


Source = ByteRange | Produced


@dataclass(frozen=True, slots=True)
class Run:
    """A source and where it goes, counted from the start of the data section."""

    source: Source
    offset: int


def coalesce(sources: Iterable[Source]) -> list[Run]:
    """Lay sources one after the other, joining byte ranges that continue each other."""
    runs = []
    offset = 0
    for source in _joined(sources):
        runs.append(Run(source, offset))
        offset += source.nbytes
    return runs


def _joined(sources: Iterable[Source]) -> Iterator[Source]:
    file, start, end = Path(), 0, 0
    for source in sources:
        if not source.nbytes:
            continue
        is_range = isinstance(source, ByteRange)
        if is_range and source.start == end and source.file == file:
            end += source.nbytes
            continue
        if end > start:
            yield ByteRange(file, start, end - start)
        if is_range:
            file, start, end = source.file, source.start, source.start + source.nbytes
        else:
            file, start, end = Path(), 0, 0
            yield source
    if end > start:
        yield ByteRange(file, start, end - start)


def best_phase(runs: Iterable[Run]) -> int | None:
    """Where the data section should start, modulo the block size, to share the most bytes.

    A run keeps its phase if the data section starts at (its start - its offset); the bytes vote.
    Only multiples of 8 stand for election, so that tensors stay aligned. None if
    nothing is to be shared.
    """
    votes: dict[int, int] = {}
    for run in runs:
        if isinstance(run.source, ByteRange):
            phase = (run.source.start - run.offset) % BLOCK_BYTES
            if phase % 8 == 0:
                votes[phase] = votes.get(phase, 0) + run.source.nbytes
    return max(votes, key=lambda phase: votes[phase], default=None)


def write_runs(
    out: int,
    runs: Iterable[Run],
    data_start: int,
    *,
    on_bytes: Callable[[int], None] | None = None,
    stop: Event | None = None,
) -> None:
    """Carry `runs` out to the open file `out`. Memory: two windows of 8 MB, or one `Produced`.

    Args:
        out: file descriptor, writable.
        runs: as `coalesce` gives them.
        data_start: absolute position of offset 0.
        on_bytes: called with the number of bytes after each step, also from other threads.
        stop: when set by another thread, writing ends early.

    Raises:
        CheckpointError: a source cannot be opened or became shorter.
    """
    stop, on_bytes = stop or Event(), on_bytes or (lambda _: None)
    copier = _Copier(out, on_bytes, stop)
    opened: dict[Path, int] = {}
    moves = []
    try:
        for run in runs:
            source, position = run.source, data_start + run.offset
            if isinstance(source, Produced):
                copier.write(source, position)
                continue
            if source.file not in opened:
                opened[source.file] = _open(source.file)
            moves.append(Move(*source, position))
        for move in _after_direct(out, moves, opened, on_bytes, stop):
            copier.copy(opened[move.file], move)
    finally:
        for fd in opened.values():
            os.close(fd)


def _after_direct(
    out: int,
    moves: list[Move],
    opened: Mapping[Path, int],
    on_bytes: Callable[[int], None],
    stop: Event,
) -> list[Move]:
    """What is left of `moves` once their large parts are written, unless blocks are shared."""
    if shares_blocks(out, moves, opened):
        return moves
    large, rest = [], []
    for move in moves:
        begin, end = aligned_part(move)
        if begin == end:
            rest.append(move)
            continue
        large.append(move.part(begin, end))
        edges = (move.part(0, begin), move.part(end, move.nbytes))
        rest += [edge for edge in edges if edge.nbytes]
    return rest + (write_direct(out, large, opened, on_bytes=on_bytes, stop=stop) if large else [])


class _Copier:
    """Copies ranges; remembers when the kernel has refused, so that it is asked only once."""

    def __init__(self, out: int, on_bytes: Callable[[int], None], stop: Event) -> None:
        self.out = out
        self.on_bytes = on_bytes
        self.stop = stop
        self.in_kernel = hasattr(os, "copy_file_range")

    def write(self, source: Produced, position: int) -> None:
        data = memoryview(source.produce()).cast("B")
        assert len(data) == source.nbytes, f"produced {len(data)} bytes, promised {source.nbytes}"
        while len(data) and not self.stop.is_set():
            count = os.pwrite(self.out, data[:_CHUNK_BYTES], position)
            data, position = data[count:], position + count
            self.on_bytes(count)

    def copy(self, fd: int, move: Move) -> None:
        start, position, left = move.start, move.position, move.nbytes
        while left and not self.stop.is_set():
            count = self._kernel_step(fd, start, position, left) if self.in_kernel else 0
            count = count or self._buffer_step(fd, start, position, left)
            if not count:
                raise CheckpointError(f"{move.file}: ends early; was it rewritten meanwhile?")
            start, position, left = start + count, position + count, left - count
            self.on_bytes(count)

    def _kernel_step(self, fd: int, start: int, position: int, left: int) -> int:
        count = min(left, _CHUNK_BYTES)
        head = -start % BLOCK_BYTES
        if head and (start - position) % BLOCK_BYTES == 0:
            count = min(count, head)  # up to the block's end; from there blocks can be shared
        try:
            return os.copy_file_range(fd, self.out, count, start, position)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            self.in_kernel = False
            return 0

    def _buffer_step(self, fd: int, start: int, position: int, left: int) -> int:
        data = memoryview(os.pread(fd, min(left, _BUFFER_BYTES), start))
        total = len(data)
        while data:
            count = os.pwrite(self.out, data, position)
            data, position = data[count:], position + count
        return total


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
