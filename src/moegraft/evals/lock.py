"""Which processes write to a run directory: one per shard, one number of shards at a time."""

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moegraft.errors import OutputError, RunError

_log = logging.getLogger(__name__)
_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


@contextmanager
def writer_lock(run_dir: Path, shard: tuple[int, int]) -> Iterator[None]:
    """Hold the right to write as shard (i, n) of `run_dir`.

    The kernel releases the lock when the process ends, however it ends, so a killed process can
    be started again at once.

    Raises:
        RunError: a live process writes as the same shard, or under another number of shards.
    """
    folder = run_dir / "state" / "locks"
    name = f"{shard[0]}-of-{shard[1]}"
    with _locked(folder / "gate", wait=True):
        for other in sorted(folder.glob("*-of-*")):
            clashes = other.name == name or not other.name.endswith(f"-of-{shard[1]}")
            if clashes and _is_held(other):
                raise RunError(_explain(run_dir, other, name))
        own = _open(folder / name)
        _try_lock(own, wait=False)
        os.ftruncate(own, 0)
        os.pwrite(own, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    try:
        yield
    finally:
        os.close(own)


@contextmanager
def merge_lock(run_dir: Path) -> Iterator[None]:
    """Wait for, then hold, the right to join parts and to write DONE."""
    with _locked(run_dir / "state" / "locks" / "merge", wait=True):
        yield


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[None]:
    file = _open(path)
    try:
        _try_lock(file, wait=wait)
        yield
    finally:
        os.close(file)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OutputError(f"{path}: cannot be opened: {error.strerror or error}") from None


def _try_lock(file: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _log.warning("this file system has no locks: two writers would not be noticed")
    return True


def _is_held(path: Path) -> bool:
    file = _open(path)
    try:
        return not _try_lock(file, wait=False)
    finally:
        os.close(file)


def _explain(run_dir: Path, other: Path, name: str) -> str:
    try:
        holder = json.loads(other.read_text(encoding="utf-8"))
        who = f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError):
        who = "another process"
    shard = other.name.replace("-of-", "/")
    if other.name == name:
        return f"{run_dir}: {who} is already writing as shard {shard}; wait for it or stop it"
    return (
        f"{run_dir}: {who} is writing as shard {shard}; every process of a run needs the same "
        "number of shards, so wait for it, stop it, or match its --shard i/n"
    )
