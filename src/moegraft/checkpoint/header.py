"""The header of one safetensors file, parsed strictly: names, dtypes, shapes and byte positions.

The format is 8 bytes with the header's length, the header as JSON, then the tensors' bytes
without holes or overlaps. Nothing here decodes a tensor.
"""

import json
import os
import struct
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from moegraft.errors import CheckpointError

DTYPE_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}
"""Width in bits of every dtype that the format knows."""

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

_MAX_AXES = 64
_FIELDS = {"dtype", "shape", "data_offsets"}
_Described = tuple[str, str, tuple[int, ...], int, int]
"""Name, dtype, shape, first byte in the file, number of bytes."""
_Sizes = dict[str, tuple[tuple[int, ...], int]]
"""Checked shapes and their bytes, by dtype and shape as written; checkpoints repeat few."""


class TensorHeader(NamedTuple):
    """One stored tensor: where its bytes are."""

    name: str
    dtype: str
    """Safetensors dtype name: BF16, F16, F32, F8_E4M3, U8, ..."""
    shape: tuple[int, ...]
    file: Path
    start: int
    """Absolute offset of the first byte in `file`."""
    nbytes: int


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor. Raises ValueError when its bits do not fill whole bytes."""
    bits = DTYPE_BITS[dtype]
    for length in shape:
        bits *= length
    if bits % 8:
        raise ValueError(f"{dtype} in that shape does not fill whole bytes")
    return bits // 8


def read_header(file: Path) -> dict[str, TensorHeader]:
    """Parse and check the header of `file`; tensors in the order of their bytes.

    Raises:
        CheckpointError: anything that the format forbids; the message names file and tensor.
    """
    raw, size = read_header_bytes(file)
    try:
        end, tensors = _described(raw)
        _check_end(end, size)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    return {
        name: TensorHeader(name, dtype, shape, file, start, nbytes)
        for name, dtype, shape, start, nbytes in tensors
    }


@lru_cache(maxsize=4)
def _described(raw: bytes) -> tuple[int, tuple[_Described, ...]]:
    """Where the data end, and what stands where in it; host and donor often have equal headers."""
    if raw[8:9] != b"{":
        raise CheckpointError("not a safetensors file: its header is no JSON object")
    try:
        header = _parse_json(raw[8:].decode("utf-8"))
    except RecursionError:
        raise CheckpointError("header nests too deeply to be safetensors") from None
    except ValueError as error:
        raise CheckpointError(f"header is not valid JSON ({error})") from None
    _check_metadata(header.pop("__metadata__", {}))
    sizes: _Sizes = {}
    tensors = [_parse(name, entry, len(raw), sizes) for name, entry in header.items()]
    tensors.sort(key=itemgetter(3, 4))
    return _check_packing(tensors, len(raw)), tuple(tensors)


def read_header_bytes(file: Path) -> tuple[bytes, int]:
    """The length field with the header, as they stand in `file`, and the size of the file."""
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            if len(prefix) < 8:
                raise CheckpointError(f"{file}: {size} bytes is too short for safetensors")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{file}: header claims {length} bytes, but the file has {size}; "
                    "it is truncated, or no safetensors file"
                )
            return prefix + stream.read(length), size
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None


def _parse_json(text: str) -> dict[str, Any]:
    """As `json.loads`, but a key that stands twice is an error."""
    found = json.loads(text)
    # Without a backslash no string holds a quote, so `":` counts the keys as they are written.
    if "\\" not in text and text.count('":') == len(found) + sum(
        len(value) for value in found.values() if isinstance(value, dict)
    ):
        return found
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice")
    return found


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError("__metadata__ must map strings to strings")


def _parse(name: str, entry: Any, data_start: int, sizes: _Sizes) -> _Described:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise CheckpointError(f"tensor {name!r} needs dtype, shape and data_offsets only")
    if not name.isprintable():
        raise CheckpointError(f"tensor name {name!r} holds characters that cannot print")
    dtype, offsets = entry["dtype"], entry["data_offsets"]
    if not _is_span(offsets):
        raise CheckpointError(f"tensor {name!r} has invalid offsets {_short(offsets)}")
    kind = f"{dtype} {entry['shape']}"  # as text, so that 1, 1.0 and true stay apart
    if kind not in sizes:
        sizes[kind] = _measure(name, dtype, entry["shape"])
    shape, expected = sizes[kind]
    nbytes = offsets[1] - offsets[0]
    if nbytes != expected:
        raise CheckpointError(
            f"tensor {name!r} has {nbytes} bytes, but {kind[:60]} takes {_short(expected)}"
        )
    return name, dtype, shape, data_start + offsets[0], nbytes


def _measure(name: str, dtype: Any, shape: Any) -> tuple[tuple[int, ...], int]:
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(f"tensor {name!r} has unknown dtype {_short(dtype)}")
    if not _naturals(shape) or len(shape) > _MAX_AXES:
        raise CheckpointError(f"tensor {name!r} has no valid shape: {_short(shape)}")
    try:
        return tuple(shape), tensor_bytes(dtype, tuple(shape))
    except ValueError as error:
        raise CheckpointError(f"tensor {name!r}: {error}") from None


def _is_span(offsets: Any) -> bool:
    """Whether `offsets` are a begin and an end; spelled out, as it is asked for every tensor."""
    if type(offsets) is not list or len(offsets) != 2:
        return False
    begin, end = offsets
    return type(begin) is int and type(end) is int and 0 <= begin <= end < 1 << 63


def _naturals(values: Any) -> bool:
    if not isinstance(values, list) or not set(map(type, values)) <= {int}:
        return False
    return not values or (min(values) >= 0 and max(values) < 1 << 63)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 1 << 80 else "far too many"
    return text if len(text) <= 60 else text[:57] + "..."


def _check_packing(tensors: list[_Described], data_start: int) -> int:
    """The position after the last tensor; there must be no hole and no overlap before it."""
    position = data_start
    for name, _, _, start, nbytes in tensors:
        if start != position:
            what = "overlaps the tensor before it" if start < position else "follows a hole"
            raise CheckpointError(f"tensor {name!r} {what}")
        position += nbytes
    return position


def _check_end(end: int, size: int) -> None:
    if end > size:
        raise CheckpointError(f"truncated: the header describes {end} bytes, the file has {size}")
    if end < size:
        raise CheckpointError(f"{size - end} bytes after the last tensor belong to no tensor")
