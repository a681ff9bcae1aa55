"""Large ranges past the page cache."""

import errno
import os
import threading

import numpy as np
import pytest

from moegraft.checkpoint import direct
from moegraft.checkpoint.direct import (
    MIN_BYTES,
    UNIT_BYTES,
    Move,
    aligned_part,
    shares_blocks,
    write_direct,
)
from moegraft.checkpoint.ranges import ByteRange, Produced, coalesce, write_runs
from moegraft.errors import CheckpointError

SIZE = 3 * MIN_BYTES + 5000


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "source"
    file.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return file


@pytest.fixture
def opened(source, tmp_path):
    """Descriptors of the source and of an empty output."""
    fds = os.open(source, os.O_RDONLY), os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    yield fds
    for fd in fds:
        os.close(fd)


def carry_out(opened, *moves, **how):
    quiet = {"on_bytes": lambda _: None, "stop": threading.Event()}
    sources = {move.file: opened[0] for move in moves}
    return write_direct(opened[1], moves, sources, **(quiet | how))


def test_the_aligned_part_fills_whole_units_of_the_output(tmp_path):
    move = Move(tmp_path, 7, MIN_BYTES + 2 * UNIT_BYTES, 3 * UNIT_BYTES + 10)
    begin, end = aligned_part(move)
    part = move.part(begin, end)
    assert part == Move(tmp_path, 7 + UNIT_BYTES - 10, MIN_BYTES + UNIT_BYTES, 4 * UNIT_BYTES)
    assert aligned_part(move.part(0, MIN_BYTES)) == (0, 0)


@pytest.mark.parametrize("start", [0, 1, 4095])
def test_every_byte_arrives_from_any_offset_of_the_source(
    start, source, opened, tmp_path, monkeypatch
):
    monkeypatch.setattr(direct, "_CHUNK_BYTES", 4 * UNIT_BYTES)
    steps = []
    left = carry_out(opened, Move(source, start, 2 * MIN_BYTES, UNIT_BYTES), on_bytes=steps.append)
    assert left == []
    assert sum(steps) == 2 * MIN_BYTES
    expected = bytes(UNIT_BYTES) + source.read_bytes()[start : start + 2 * MIN_BYTES]
    assert (tmp_path / "out").read_bytes() == expected


def test_a_large_run_goes_past_the_cache_and_its_edges_do_not(source, tmp_path, monkeypatch):
    seen = []
    real = direct.write_direct

    def spy(out, moves, sources, **how):
        seen.extend(moves)
        return real(out, moves, sources, **how)

    monkeypatch.setattr("moegraft.checkpoint.ranges.write_direct", spy)
    monkeypatch.setattr("moegraft.checkpoint.ranges.shares_blocks", lambda *_: False)
    sources = [
        ByteRange(source, 5, 100),
        Produced(9, lambda: b"-produced"),
        ByteRange(source, 300, 2 * MIN_BYTES),
        ByteRange(source, 11, 1),
    ]
    fd = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    write_runs(fd, coalesce(sources), 0)
    os.close(fd)
    raw = source.read_bytes()
    expected = raw[5:105] + b"-produced" + raw[300 : 300 + 2 * MIN_BYTES] + raw[11:12]
    assert (tmp_path / "out").read_bytes() == expected
    begin = UNIT_BYTES - 109
    assert seen == [Move(source, 300 + begin, 2 * MIN_BYTES - UNIT_BYTES, UNIT_BYTES)]


def test_a_file_system_without_direct_writes_gets_all_back(source, opened, monkeypatch):
    monkeypatch.setattr(os, "O_DIRECT", os.O_DIRECTORY)  # refused at opening, as O_DIRECT can be
    move = Move(source, 0, MIN_BYTES, 0)
    assert carry_out(opened, move) == [move]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_what_is_refused_half_way_comes_back(code, source, opened, tmp_path, monkeypatch):
    real = os.pwrite

    def refuse(fd, data, position):
        if position >= MIN_BYTES:
            raise OSError(code, "refused")
        return real(fd, data[:UNIT_BYTES], position)

    monkeypatch.setattr(os, "pwrite", refuse)
    left = carry_out(opened, Move(source, 0, 2 * MIN_BYTES, 0))
    assert left == [Move(source, MIN_BYTES, MIN_BYTES, MIN_BYTES)]
    assert (tmp_path / "out").read_bytes() == source.read_bytes()[:MIN_BYTES]


def test_a_full_disk_is_not_hidden_and_stops_the_other_threads(source, opened, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", fail)
    stop = threading.Event()
    with pytest.raises(OSError, match="full"):
        carry_out(opened, Move(source, 0, MIN_BYTES, 0), stop=stop)
    assert stop.is_set()


@pytest.mark.parametrize("start", [2 * MIN_BYTES, 2 * MIN_BYTES + 8], ids=["mapped", "read"])
def test_a_source_that_shrank_is_one_line(start, source, opened):
    with pytest.raises(CheckpointError, match="source: ends early; was it rewritten meanwhile"):
        carry_out(opened, Move(source, start, 2 * MIN_BYTES, 0))


def test_a_source_that_shrinks_under_its_map_is_one_line(source, opened, monkeypatch):
    real = os.pwrite

    def shrink(fd, data, position):
        os.truncate(source, MIN_BYTES // 2 + 100)
        return real(fd, data, position)

    monkeypatch.setattr(os, "pwrite", shrink)
    with pytest.raises(CheckpointError, match="source: ends early; was it rewritten meanwhile"):
        carry_out(opened, Move(source, 0, MIN_BYTES, 0))


def test_a_set_stop_ends_writing(source, opened, tmp_path):
    stop = threading.Event()
    stop.set()
    assert carry_out(opened, Move(source, 0, MIN_BYTES, 0), stop=stop) == []
    assert (tmp_path / "out").stat().st_size == 0


def test_sharing_is_tried_on_one_unit_in_phase(source, opened, monkeypatch):
    asked = []

    def clone(fd, request, argument):
        asked.append((fd, request, argument))

    monkeypatch.setattr(direct.fcntl, "ioctl", clone)
    source_fd, out = opened
    out_of_phase, short = Move(source, 8, MIN_BYTES, 0), Move(source, 0, UNIT_BYTES - 1, 0)
    assert not shares_blocks(out, [out_of_phase, short], {source: source_fd})
    assert not asked
    in_phase = Move(source, 100, 3 * UNIT_BYTES, UNIT_BYTES + 100)
    assert shares_blocks(out, [out_of_phase, in_phase], {source: source_fd})
    place = (source_fd, UNIT_BYTES, UNIT_BYTES, 2 * UNIT_BYTES)
    assert asked == [(out, 0x4020940D, direct.struct.pack("qQQQ", *place))]
