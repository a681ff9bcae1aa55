"""Large ranges past the page cache: straight to the disk from a memory map of the source.

A buffered copy fills the page cache with gigabytes that fsync then waits for. Writing with O_DIRECT
keeps the disk busy from the first block on and takes a third of the CPU time. What was written is
not left in the cache, so its first reader reads from the disk.
"""

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import NamedTuple

from moegraft.errors import CheckpointError

UNIT_BYTES = max(4096, mmap.PAGESIZE)
"""Direct writes begin and end at multiples of this, in memory and in the file."""

MIN_BYTES = 1 << 20
"""Below this the page cache is faster."""

_CHUNK_BYTES = 8 << 20
_NUM_THREADS = 2
_FICLONERANGE = 0x4020940D
_REFUSED = {
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EPERM,
    errno.EFAULT,  # the source shrank under its map, which the caller finds out
}


class Move(NamedTuple):
    """Bytes of a source file and their absolute position in the output."""

    file: Path
    start: int
    nbytes: int
    position: int

    def part(self, begin: int, end: int) -> "Move":
        """The bytes from `begin` to `end`, counted from the move's own first byte."""
        return Move(self.file, self.start + begin, end - begin, self.position + begin)


def aligned_part(move: Move) -> tuple[int, int]:
    """Begin and end, within `move`, of the units that it fills; equal if they are too few."""
    begin = -move.position % UNIT_BYTES
    end = begin + (move.nbytes - begin) // UNIT_BYTES * UNIT_BYTES
    return (begin, end) if end - begin >= MIN_BYTES else (0, 0)


def shares_blocks(out: int, moves: Iterable[Move], sources: Mapping[Path, int]) -> bool:
    """Whether the file system shares blocks with `out`, tried on one unit of the first move it can.

    The unit is some of the bytes that the move is to bring, so a trial that succeeds does no harm.
    """
    for move in moves:
        begin = -move.position % UNIT_BYTES
        if (move.start - move.position) % UNIT_BYTES or begin + UNIT_BYTES > move.nbytes:
            continue
        place = (move.start + begin, UNIT_BYTES, move.position + begin)
        try:
            fcntl.ioctl(out, _FICLONERANGE, struct.pack("qQQQ", sources[move.file], *place))
        except OSError:
            return False
        return True
    return False


def write_direct(
    out: int,
    moves: Iterable[Move],
    sources: Mapping[Path, int],
    *,
    on_bytes: Callable[[int], None],
    stop: Event,
) -> list[Move]:
    """Carry `moves` out to the file that `out` has open. Memory: two windows of 8 MB.

    A window of the source is mapped where it begins on a page of its file, else read into a buffer.

    Args:
        out: file descriptor, writable; it stays buffered.
        moves: aligned as `aligned_part` says.
        sources: an open descriptor for each file of `moves`.
        on_bytes: called from the writing threads with the number of bytes after each step.
        stop: when set by another thread, writing ends early.

    Returns:
        What the file system refused to write past its cache, for another way.

    Raises:
        CheckpointError: a source became shorter.
        OSError: the disk is full, or failed.
    """
    try:
        direct = os.open(f"/proc/self/fd/{out}", os.O_WRONLY | getattr(os, "O_DIRECT", 0))
    except OSError:
        return list(moves)
    buffers: SimpleQueue[mmap.mmap] = SimpleQueue()
    for _ in range(_NUM_THREADS):
        buffers.put(mmap.mmap(-1, _CHUNK_BYTES))

    def carry(move: Move) -> Move | None:
        if stop.is_set():
            return None
        source = sources[move.file]
        os.posix_fadvise(source, move.start, move.nbytes, os.POSIX_FADV_WILLNEED)
        with _window(source, move, buffers) as data:
            written = _write(direct, data, move.position)
        if os.fstat(source).st_size < move.start + move.nbytes:  # a map then ends in zeros
            raise _shrunk(move)
        on_bytes(written)
        return move.part(written, move.nbytes) if written < move.nbytes else None

    try:
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            try:
                return [left for left in pool.map(carry, _chunks(moves)) if left]
            except BaseException:
                stop.set()
                raise
    finally:
        os.close(direct)


def _chunks(moves: Iterable[Move]) -> Iterator[Move]:
    for move in moves:
        for begin in range(0, move.nbytes, _CHUNK_BYTES):
            yield move.part(begin, min(begin + _CHUNK_BYTES, move.nbytes))


@contextmanager
def _window(source: int, move: Move, buffers: SimpleQueue[mmap.mmap]) -> Iterator[memoryview]:
    """The bytes of `move`, in memory that begins on a page."""
    if move.start % mmap.ALLOCATIONGRANULARITY == 0:
        try:
            mapped = mmap.mmap(source, move.nbytes, access=mmap.ACCESS_READ, offset=move.start)
        except ValueError:  # longer than the file
            raise _shrunk(move) from None
        yield memoryview(mapped)
        return
    buffer = buffers.get()
    try:
        data = memoryview(buffer)[: move.nbytes]
        _fill(data, source, move)
        yield data
    finally:
        buffers.put(buffer)


def _fill(data: memoryview, source: int, move: Move) -> None:
    """Read all of `move` into `data`."""
    done = 0
    while done < len(data):
        count = os.preadv(source, [data[done:]], move.start + done)
        if not count:
            raise _shrunk(move)
        done += count


def _shrunk(move: Move) -> CheckpointError:
    return CheckpointError(f"{move.file}: ends early; was it rewritten meanwhile?")


def _write(direct: int, data: memoryview, position: int) -> int:
    """The number of bytes that were written; fewer than given where the rest was refused."""
    done = 0
    while done < len(data) and done % UNIT_BYTES == 0:
        try:
            done += os.pwrite(direct, data[done:], position + done)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            break
    return done
