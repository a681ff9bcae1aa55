import json
import os
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from safetensors import safe_open

from moegraft.checkpoint import open_checkpoint, read_bytes
from moegraft.checkpoint.header import read_header
from moegraft.checkpoint.writer import (
    ByteRange,
    Entry,
    Produced,
    plan_shards,
    shards_bytes,
    staged_output,
    write_safetensors,
    write_shards,
)
from moegraft.errors import CheckpointError, OutputError
from small_checkpoints import CONFIG, make_file, olmoe_tensors


def entries_of(folder):
    return [Entry.of(tensor) for tensor in open_checkpoint(folder).tensors.values()]


def made(name, nbytes, dtype="U8"):
    return Entry(name, dtype, (nbytes,), (Produced(nbytes, partial(bytes, nbytes)),))


def contents(file):
    return {name: (t.dtype, t.shape, read_bytes(t)) for name, t in read_header(file).items()}


def test_a_copy_holds_the_same_tensors_in_the_same_order(folder, tmp_path):
    write_safetensors(tmp_path / "copy.safetensors", entries_of(folder))
    copied = contents(tmp_path / "copy.safetensors")
    assert copied == contents(folder / "model.safetensors") == olmoe_tensors()
    assert list(copied) == list(olmoe_tensors())


def test_the_reference_reader_reads_it_bit_by_bit(folder, tmp_path):
    write_safetensors(tmp_path / "copy.safetensors", entries_of(folder))
    with safe_open(tmp_path / "copy.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        for name, (_, shape, raw) in olmoe_tensors().items():
            tensor = file.get_tensor(name)
            assert tensor.shape == shape
            assert tensor.view(torch.uint8).numpy().tobytes() == raw


def test_a_tensor_may_be_put_together_from_pieces_of_several_files(tmp_path):
    a = make_file(tmp_path / "a", {"x": ("BF16", (2, 3), b"abcdefghijkl")})
    b = make_file(tmp_path / "b", {"x": ("BF16", (2, 3), b"ABCDEFGHIJKL")})
    ours, theirs = read_header(a)["x"], read_header(b)["x"]
    sources = (
        ByteRange(a, ours.start, 6),
        ByteRange(b, theirs.start + 6, 2),
        Produced(4, lambda: np.array([-0.0], "<f4")),
    )
    write_safetensors(tmp_path / "out", [Entry("x", "BF16", (2, 3), sources)])
    assert contents(tmp_path / "out")["x"][2] == b"abcdefGH\0\0\0\x80"


def test_sources_must_fill_the_tensor_exactly(tmp_path):
    short = Entry("x", "U8", (4,), (Produced(3, lambda: b"123"),))
    with pytest.raises(AssertionError, match="sources give 3 bytes, shape takes 4"):
        write_safetensors(tmp_path / "out", [short])


@pytest.mark.parametrize("phase", [8, 1000, 2048, 4088])
def test_the_header_is_padded_so_that_runs_keep_their_phase(phase, tmp_path):
    big = ("U8", (50_000,), np.random.default_rng(0).bytes(50_000))
    source = make_file(tmp_path / "source", {"small": ("U8", (8,), b"12345678"), "x": big})
    length = source.stat().st_size
    pad = (phase - (length - 50_000)) % 4096
    make_file(source, {"small": ("U8", (8,), b"12345678"), "x": big}, pad=pad)
    tensors = read_header(source)
    assert tensors["x"].start % 4096 == phase
    entries = [made("first", 4096 * 2 + 16), Entry.of(tensors["x"]), Entry.of(tensors["small"])]
    write_safetensors(tmp_path / "out", entries)
    written = read_header(tmp_path / "out")
    assert written["x"].start % 4096 == phase
    assert contents(tmp_path / "out")["x"] == big


def test_a_phase_that_would_misalign_tensors_is_not_kept(tmp_path):
    source = make_file(tmp_path / "source", {"x": ("U8", (5000,), bytes(5000))})
    raw = source.read_bytes()
    pad = (3 - (len(raw) - 5000)) % 8
    make_file(source, {"x": ("U8", (5000,), bytes(5000))}, pad=pad)
    assert read_header(source)["x"].start % 8 == 3
    write_safetensors(tmp_path / "out", [Entry.of(read_header(source)["x"])])
    assert read_header(tmp_path / "out")["x"].start % 8 == 0


def test_wider_numbers_come_first_only_where_alignment_needs_it(tmp_path):
    write_safetensors(tmp_path / "a", [made("x", 4), made("y", 8), made("z", 3)])
    assert list(read_header(tmp_path / "a")) == ["x", "y", "z"]
    wide = Entry("wide", "F32", (1,), (Produced(4, lambda: b"1234"),))
    write_safetensors(tmp_path / "b", [made("x", 4), wide, made("z", 3)])
    assert list(read_header(tmp_path / "b")) == ["x", "wide", "z"]
    write_safetensors(tmp_path / "c", [made("x", 3), wide, made("z", 3)])
    assert list(read_header(tmp_path / "c")) == ["wide", "x", "z"]


def test_shards_follow_the_host_or_a_size():
    entries = [made(name, 10) for name in "abcdef"]
    label = {"a": 1, "b": 2, "c": 1, "e": 2, "f": 1}
    by_host = plan_shards(entries, shard_of=label)
    assert [[e.name for e in group] for group in by_host.values()] == [
        ["a", "c", "d", "f"],
        ["b", "e"],
    ]
    assert list(by_host) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    by_size = plan_shards(entries, max_shard_bytes=25)
    assert [len(group) for group in by_size.values()] == [2, 2, 2]
    assert [len(group) for group in plan_shards(entries, max_shard_bytes=1).values()] == [1] * 6
    assert list(plan_shards(entries)) == ["model.safetensors"]
    assert list(plan_shards(entries, shard_of=dict.fromkeys("abcdef", 0))) == ["model.safetensors"]
    assert plan_shards([]) == {"model.safetensors": []}


@pytest.mark.parametrize("num_threads", [1, 3])
def test_shards_and_index_make_a_whole_checkpoint(num_threads, folder, tmp_path):
    shards = plan_shards(entries_of(folder), max_shard_bytes=300)
    assert len(shards) == 3
    steps = []
    with staged_output(tmp_path / "out", [folder], shards_bytes(shards)) as out:
        write_shards(out, shards, num_threads=num_threads, on_bytes=steps.append)
        (out / "config.json").write_text(json.dumps(CONFIG))
    written = open_checkpoint(tmp_path / "out")
    assert {n: read_bytes(t) for n, t in written.tensors.items()} == {
        n: raw for n, (_, _, raw) in olmoe_tensors().items()
    }
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == written.num_bytes == sum(steps)
    on_disk = sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert on_disk - len(json.dumps(CONFIG)) <= shards_bytes(shards)


def test_one_shard_needs_no_index(folder, tmp_path):
    with staged_output(tmp_path / "out") as out:
        write_shards(out, plan_shards(entries_of(folder)))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.safetensors"]


def test_an_error_in_one_of_several_shards_leaves_nothing(folder, tmp_path):
    entries = entries_of(folder)
    (folder / "model.safetensors").write_bytes(b"short")
    with (
        pytest.raises(CheckpointError, match="ends early"),
        staged_output(tmp_path / "out") as out,
    ):
        write_shards(out, plan_shards(entries, max_shard_bytes=300), num_threads=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_header_beyond_the_format_s_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("moegraft.checkpoint.writer.MAX_HEADER_BYTES", 50)
    with pytest.raises(OutputError, match="of header exceed the format's 50"):
        write_safetensors(tmp_path / "out", [made("x", 1)])


WRITE_SLOWLY = """
import sys, time
from pathlib import Path
from moegraft.checkpoint import open_checkpoint
from moegraft.checkpoint.writer import *
source, out = map(Path, sys.argv[1:])
entries = [Entry.of(tensor) for tensor in open_checkpoint(source).tensors.values()]
def pause(_):
    print("wrote", flush=True)
    time.sleep(0.3)
shards = plan_shards(entries, max_shard_bytes=200)
with staged_output(out, [source], shards_bytes(shards)) as folder:
    write_shards(folder, shards, on_bytes=pause)
    (folder / "config.json").write_text((source / "config.json").read_text())
"""


def test_kill_9_in_the_middle_of_a_write_leaves_nothing_that_loads(folder, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", WRITE_SLOWLY, str(folder), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"wrote\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not out.exists()
    (partial_folder,) = tmp_path.glob(".out.partial-*")
    assert any(partial_folder.glob("*.safetensors"))
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        open_checkpoint(partial_folder)
    with staged_output(out, [folder]) as staged:
        write_shards(staged, plan_shards(entries_of(folder)))
        (staged / "config.json").write_text(json.dumps(CONFIG))
    assert open_checkpoint(out).num_layers == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from moegraft.checkpoint.header import read_header\n"
        "from moegraft.checkpoint.writer import *\n"
        "file = Path(sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "write_safetensors(Path(sys.argv[2]), [Entry.of(t) for t in read_header(file).values()])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    source = tmp_path / "source"
    entries = [
        Entry(f"{i}", "U8", (1 << 20,), (Produced(1 << 20, lambda: bytes(1 << 20)),))
        for i in range(64)
    ]
    write_safetensors(source, entries)
    for switch in ("", "import os; del os.copy_file_range\n"):
        out = tmp_path / f"out{len(switch)}"
        command = [sys.executable, "-c", switch + code, str(source), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) < 24_000  # KB: a buffer of 4 MB and noise, against 64 MB
        assert out.read_bytes()[-(64 << 20) :] == bytes(64 << 20)
