"""Assemble an output folder aside and rename it whole: a half-written one never has its name."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from moegraft.errors import MoegraftError, OutputError, RunError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def staged_output(
    out: str | Path,
    inputs: Sequence[Path] = (),
    needed_bytes: int = 0,
    *,
    free_bytes: Callable[[Path], int] | None = None,
) -> Iterator[Path]:
    """Yield a temporary folder beside `out`; on success it becomes `out`, else it vanishes.

        with staged_output("merged", inputs=[host.path], needed_bytes=plan.nbytes) as folder:
            write_shards(folder, shards)

    Leaving the block flushes every file and folder to disk and renames atomically. An exception,
    Ctrl-C included, removes everything that was written. After kill -9 or a power cut a folder
    `.OUT.partial-PID` stays; the next run with the same `out` removes it.

    Args:
        out: the folder to make; it must not exist, or be empty.
        inputs: folders that are read; `out` must not be, lie in, or contain one of them.
        needed_bytes: refuse to start when fewer bytes are free.
        free_bytes: how many bytes are free on the file system of a folder, for tests.

    Raises:
        OutputError: `out` cannot be used, or the disk is too small or became full.
    """
    check_target(out, inputs)
    out = Path(out).expanduser().resolve()
    made = _make_parents(out.parent)
    folder, lock = out.parent / f".{out.name}.partial-{os.getpid()}", -1
    try:
        _remove_stale(out)
        _check_space(out, needed_bytes, free_bytes or _free_bytes)
        folder.mkdir()
        lock = _lock(folder)
        yield folder
        _flush(folder)
        folder.rename(out)
        made = []
        _flush_entry(out.parent)
    except OSError as error:
        if isinstance(error, MoegraftError):
            raise
        raise _explain(out, error) from error
    finally:
        if lock >= 0:
            shutil.rmtree(folder, ignore_errors=True)  # gone already if it was renamed
            os.close(lock)
        for parent in reversed(made):
            _remove_if_empty(parent)


def check_target(out: str | Path, inputs: Sequence[Path]) -> None:
    """Check that `staged_output` could make `out`, before hours of work go into it.

    Raises:
        OutputError: as `staged_output`, but for the disk.
    """
    out = Path(out).expanduser().resolve()
    check_apart(out, inputs)
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise OutputError(f"{out}: exists and is no folder")
    if any(out.iterdir()):
        raise OutputError(f"{out}: exists and is not empty; name another folder or remove it")
    if out.is_mount():
        raise OutputError(f"{out}: is a mount point; name a folder inside it")


def check_apart(out: str | Path, inputs: Sequence[Path]) -> None:
    """Check that `out` is none of the folders that are read, nor in or around one.

    Raises:
        OutputError: it is.
    """
    out = Path(out).expanduser().resolve()
    for given in inputs:
        path = given.expanduser().resolve()
        if out == path:
            raise OutputError(f"{out}: the output is the input {given}; name another folder")
        if path in out.parents or out in path.parents:
            where = "inside" if path in out.parents else "around"
            raise OutputError(f"{out}: the output lies {where} the input {given}; move it out")


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Within this block no other process may call this for `folder`, which exists.

    Raises:
        RunError: another process is in such a block.
    """
    try:
        lock = _lock(folder)
    except BlockingIOError:
        raise RunError(
            f"{folder}: another process is working in it; wait for it, or name another folder"
        ) from None
    try:
        yield
    finally:
        os.close(lock)


def _make_parents(parent: Path) -> list[Path]:
    missing = [path for path in (parent, *parent.parents) if not path.exists()]
    made = []
    for path in reversed(missing):
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise _explain(path, error) from error
        made.append(path)
    return made


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _check_space(out: Path, needed: int, free_bytes: Callable[[Path], int]) -> None:
    free = free_bytes(out.parent)
    if free < needed:
        raise OutputError(
            f"{out}: needs {needed / 1e9:.3f} GB, but {free / 1e9:.3f} GB are free; nothing written"
        )


def _remove_stale(out: Path) -> None:
    prefix = f".{out.name}.partial-"
    for path in list(out.parent.iterdir()):
        pid = path.name.removeprefix(prefix)
        if not path.name.startswith(prefix) or not pid.isdigit():
            continue
        if int(pid) != os.getpid() and _alive(int(pid)):
            continue
        try:
            lock = _lock(path)
        except OSError:  # its writer lives in another container or on another machine
            continue
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _lock(folder: Path) -> int:
    """Lock `folder` for the life of the returned descriptor; OSError if another holds it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise
    except OSError:  # a file system without locks: the process id alone has to do
        pass
    return fd


def _flush(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            _flush_entry(Path(root) / name)
        _flush_entry(Path(root))


def _flush_entry(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def _explain(out: Path, error: OSError) -> OutputError:
    if error.errno in _FULL:
        return OutputError(f"{out}: the disk is full (or a quota is); nothing was left behind")
    if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
        return OutputError(
            f"{out}: another process writes it, or has written it meanwhile; it was left alone"
        )
    return OutputError(f"{out}: cannot be written ({error.strerror or error})")
