import errno
import os
import threading

import numpy as np
import pytest

from moegraft.checkpoint import ranges
from moegraft.checkpoint.ranges import (
    ByteRange,
    Produced,
    Run,
    best_phase,
    coalesce,
    write_runs,
)
from moegraft.errors import CheckpointError


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "source"
    file.write_bytes(np.random.default_rng(0).bytes(50_000))
    return file


def carry_out(out, sources, data_start=0, **how):
    fd = os.open(out, os.O_WRONLY | os.O_CREAT)
    try:
        write_runs(fd, coalesce(sources), data_start, **how)
    finally:
        os.close(fd)
    return out.read_bytes()


def test_ranges_that_continue_each_other_become_one_run(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    made = Produced(5, lambda: b"12345")
    runs = coalesce(
        [
            ByteRange(a, 10, 5),
            ByteRange(a, 15, 5),
            ByteRange(a, 99, 0),
            ByteRange(a, 20, 1),
            ByteRange(a, 30, 1),
            ByteRange(b, 31, 1),
            made,
            ByteRange(b, 32, 1),
        ]
    )
    assert runs == [
        Run(ByteRange(a, 10, 11), 0),
        Run(ByteRange(a, 30, 1), 11),
        Run(ByteRange(b, 31, 1), 12),
        Run(made, 13),
        Run(ByteRange(b, 32, 1), 18),
    ]


def test_most_bytes_choose_the_phase(tmp_path):
    runs = coalesce(
        [
            ByteRange(tmp_path, 8 + 40, 100),
            ByteRange(tmp_path, 4096 * 7 + 500 + 16, 5000),
            ByteRange(tmp_path, 3, 90_000),
            Produced(1 << 20, lambda: b""),
        ]
    )
    assert best_phase(runs) == 500 + 16 - 100
    assert best_phase(runs[2:]) is None
    assert best_phase([]) is None


@pytest.mark.parametrize("in_kernel", [True, False])
def test_every_byte_arrives(in_kernel, source, tmp_path, monkeypatch):
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range")
    raw = source.read_bytes()
    sources = [
        ByteRange(source, 4096 + 7, 20_000),
        Produced(4, lambda: np.array([-0.0], "<f4")),
        ByteRange(source, 3, 1),
        ByteRange(source, 30_000, 20_000),
    ]
    steps = []
    written = carry_out(tmp_path / "out", sources, 4096 + 7, on_bytes=steps.append)
    expected = raw[4103:24103] + b"\0\0\0\x80" + raw[3:4] + raw[30_000:]
    assert written[4103:] == expected
    assert sum(steps) == len(expected)


def test_a_run_in_phase_is_split_at_the_block_so_that_blocks_can_be_shared(
    source, tmp_path, monkeypatch
):
    calls = []
    real = os.copy_file_range

    def spy(src, dst, count, offset_src, offset_dst):
        calls.append((count, offset_src, offset_dst))
        return real(src, dst, count, offset_src, offset_dst)

    monkeypatch.setattr(os, "copy_file_range", spy)
    carry_out(tmp_path / "out", [ByteRange(source, 100, 20_000)], 4096 + 100)
    assert calls == [(3996, 100, 4196), (16_004, 4096, 8192)]


@pytest.mark.parametrize(
    "code", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM]
)
def test_a_refused_call_falls_back_once_for_all(code, source, tmp_path, monkeypatch):
    calls = []

    def refuse(*_):
        calls.append(1)
        raise OSError(code, "refused")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    sources = [ByteRange(source, 5, 100), ByteRange(source, 300, 100)]
    raw = source.read_bytes()
    assert carry_out(tmp_path / "out", sources) == raw[5:105] + raw[300:400]
    assert len(calls) == 1


def test_other_errors_are_not_hidden(source, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "copy_file_range", fail)
    with pytest.raises(OSError, match="full"):
        carry_out(tmp_path / "out", [ByteRange(source, 0, 10)])


def test_short_steps_are_continued(source, tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "_CHUNK_BYTES", 1000)
    monkeypatch.setattr(ranges, "_BUFFER_BYTES", 700)
    raw = source.read_bytes()
    sources = [ByteRange(source, 1, 40_000), Produced(2500, lambda: bytes(2500))]
    assert carry_out(tmp_path / "a", sources) == raw[1:40_001] + bytes(2500)
    monkeypatch.delattr(os, "copy_file_range")
    assert carry_out(tmp_path / "b", sources) == raw[1:40_001] + bytes(2500)


@pytest.mark.parametrize("in_kernel", [True, False])
def test_a_source_that_shrank_is_one_line(in_kernel, source, tmp_path, monkeypatch):
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range")
    with pytest.raises(CheckpointError, match="ends early; was it rewritten meanwhile"):
        carry_out(tmp_path / "out", [ByteRange(source, 40_000, 20_000)])


def test_a_source_that_went_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="none: cannot be read"):
        carry_out(tmp_path / "out", [ByteRange(tmp_path / "none", 0, 1)])


def test_a_set_stop_ends_writing(source, tmp_path):
    stop = threading.Event()
    stop.set()
    assert carry_out(tmp_path / "out", [ByteRange(source, 0, 10)], stop=stop) == b""
