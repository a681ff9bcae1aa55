"""Write checkpoints: safetensors shards from byte ranges, with headers in phase, and the index.

    entries = [Entry(name, "BF16", (64, 2048), (ByteRange(file, start, nbytes),)), ...]
    shards = plan_shards(entries, shard_of={name: tensor.file for name, tensor in host.tensors...})
    with staged_output(out, inputs=[...], needed_bytes=shards_bytes(shards)) as folder:
        write_shards(folder, shards, on_bytes=progress)     # shards, then the index
        (folder / "config.json").write_text(...)            # config.json last
    # here `out` is complete and flushed; on any exception nothing of it exists

A tensor's bytes come from `ByteRange(file, start, nbytes)` or from `Produced(nbytes, callable)`,
laid one after the other. `Entry.of(header_or_piece...)` takes a stored tensor whole.
"""

import json
import os
import struct
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from json.encoder import encode_basestring
from pathlib import Path
from threading import Event
from typing import NamedTuple

from moegraft.checkpoint.folder import INDEX, SINGLE
from moegraft.checkpoint.header import (
    DTYPE_BITS,
    MAX_HEADER_BYTES,
    TensorHeader,
    tensor_bytes,
)
from moegraft.checkpoint.ranges import (
    BLOCK_BYTES,
    ByteRange,
    Produced,
    Source,
    best_phase,
    coalesce,
    write_runs,
)
from moegraft.checkpoint.staging import staged_output
from moegraft.errors import OutputError

__all__ = [
    "ByteRange",
    "Entry",
    "Produced",
    "plan_shards",
    "shards_bytes",
    "staged_output",
    "write_safetensors",
    "write_shards",
]

MAX_SHARD_BYTES = 5_000_000_000
"""Default size of a shard when no grouping is given; what the Hub's tools use."""


class Entry(NamedTuple):
    """One tensor to write, and the sources whose bytes, one after the other, make it."""

    name: str
    dtype: str
    """Safetensors dtype name."""
    shape: tuple[int, ...]
    sources: tuple[Source, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        if len(self.sources) == 1:
            return self.sources[0].nbytes
        return sum(source.nbytes for source in self.sources)

    @staticmethod
    def of(tensor: TensorHeader, name: str | None = None) -> "Entry":
        """The stored `tensor` whole, under its own name or another."""
        source = ByteRange(tensor.file, tensor.start, tensor.nbytes)
        return Entry(name or tensor.name, tensor.dtype, tensor.shape, (source,))


def plan_shards(
    entries: Sequence[Entry],
    *,
    shard_of: Mapping[str, Hashable] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, list[Entry]]:
    """Group `entries` into files by name, keeping their order, so that runs stay long.

    Args:
        entries: the tensors, in the order of their sources.
        shard_of: tensor name to any label; tensors of one label share a file. Give the file that
            each tensor has in the host, and the output keeps the host's shards, which is what
            lets file systems share blocks. Names that it lacks join the entry before them.
        max_shard_bytes: without `shard_of`, a file is closed before it grows past this.
    """
    groups: dict[Hashable, list[Entry]] = {}
    label: Hashable = 0
    total = 0
    for entry in entries:
        if shard_of is not None:
            label = shard_of.get(entry.name, label)
        else:
            if total and total + entry.nbytes > max_shard_bytes:
                label, total = len(groups), 0
            total += entry.nbytes
        groups.setdefault(label, []).append(entry)
    if len(groups) <= 1:
        return {SINGLE: list(entries)}
    count = len(groups)
    return {
        f"model-{number:05}-of-{count:05}.safetensors": group
        for number, group in enumerate(groups.values(), start=1)
    }


def shards_bytes(shards: Mapping[str, Sequence[Entry]]) -> int:
    """Disk space that `shards` take at most, headers, padding and index included."""
    entries = [entry for group in shards.values() for entry in group]
    headers = sum(2 * len(entry.name) + 200 for entry in entries)
    return sum(e.nbytes for e in entries) + headers + len(shards) * 3 * BLOCK_BYTES


def write_shards(
    folder: Path,
    shards: Mapping[str, Sequence[Entry]],
    *,
    metadata: Mapping[str, str] | None = None,
    num_threads: int = 1,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """Write all `shards` into `folder`, and after them the index if there are several.

    Args:
        folder: an existing folder, normally from `staged_output`.
        shards: file name to tensors, from `plan_shards`.
        metadata: `__metadata__` of every header; `{"format": "pt"}` by default.
        num_threads: shards written at the same time.
        on_bytes: progress, called from the writing threads.

    Raises:
        CheckpointError: a source cannot be read or became shorter.
        OSError: the disk is full; `staged_output` turns it into an OutputError.
    """
    stop = Event()

    def write(item: tuple[str, Sequence[Entry]]) -> None:
        name, entries = item
        write_safetensors(folder / name, entries, metadata=metadata, on_bytes=on_bytes, stop=stop)

    with ThreadPoolExecutor(max(1, min(num_threads, len(shards)))) as pool:
        try:
            for _ in pool.map(write, shards.items()):
                pass
        finally:
            stop.set()
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(e.nbytes for group in shards.values() for e in group)},
            "weight_map": dict(sorted((e.name, f) for f, group in shards.items() for e in group)),
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_safetensors(
    file: Path,
    entries: Sequence[Entry],
    *,
    metadata: Mapping[str, str] | None = None,
    on_bytes: Callable[[int], None] | None = None,
    stop: Event | None = None,
) -> None:
    """Write one safetensors file, in the order of `entries`, and flush it to disk.

    The order changes only where a tensor would not be aligned to its numbers: then wider dtypes
    come first, as other writers have it. The header is padded so that most bytes keep their phase
    modulo the block size. Memory: the header and one buffer.
    """
    entries = _aligned(entries)
    runs = coalesce(source for entry in entries for source in entry.sources)
    header = _header(entries, metadata or {"format": "pt"}, best_phase(runs))
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.pwrite(fd, header, 0)
        write_runs(fd, runs, len(header), on_bytes=on_bytes, stop=stop)
        os.fsync(fd)
    finally:
        os.close(fd)


def _aligned(entries: Sequence[Entry]) -> Sequence[Entry]:
    offset = 0
    for entry in entries:
        if offset % max(1, DTYPE_BITS[entry.dtype] // 8):
            return sorted(entries, key=lambda e: -DTYPE_BITS[e.dtype])
        offset += entry.nbytes
    return entries


def _header(entries: Iterable[Entry], metadata: Mapping[str, str], phase: int | None) -> bytes:
    described = {"__metadata__": json.dumps(dict(metadata), ensure_ascii=False)}
    kinds: dict[tuple[str, tuple[int, ...]], tuple[str, int]] = {}
    offset = 0
    for entry in entries:
        name, dtype, shape, nbytes = entry.name, entry.dtype, entry.shape, entry.nbytes
        if (dtype, shape) not in kinds:
            words = f'"dtype":"{dtype}","shape":[{",".join(map(str, shape))}]'
            kinds[dtype, shape] = words, tensor_bytes(dtype, shape)
        words, wanted = kinds[dtype, shape]
        assert name not in described, f"{name} is written twice"
        assert nbytes == wanted, f"{name}: sources give {nbytes} bytes, shape takes {wanted}"
        described[name] = f'{{{words},"data_offsets":[{offset},{offset + nbytes}]}}'
        offset += nbytes
    # Put together as text, because json.dumps takes three times as long for thousands of tensors.
    pairs = ",".join([f"{encode_basestring(name)}:{text}" for name, text in described.items()])
    text = f"{{{pairs}}}".encode()
    if phase is None:
        text += b" " * (-len(text) % 8)
    else:
        text += b" " * ((phase - 8 - len(text)) % BLOCK_BYTES)
    if len(text) > MAX_HEADER_BYTES:
        raise OutputError(f"{len(text)} bytes of header exceed the format's {MAX_HEADER_BYTES}")
    return struct.pack("<Q", len(text)) + text
