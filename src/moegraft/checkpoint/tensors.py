"""Bytes and tensors from their stored position, exactly as they stand in the file."""

import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from moegraft.checkpoint.header import TensorHeader
from moegraft.errors import CheckpointError
from moegraft.families import Piece

_CHUNK_BYTES = 8 << 20


class StoredPiece(NamedTuple):
    """A piece of a stored tensor, with absolute byte position."""

    piece: Piece
    tensor: TensorHeader

    @property
    def start(self) -> int:
        """Absolute offset of the first byte in the tensor's file."""
        return self.tensor.start + self.piece.offset

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.piece.nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the piece."""
        return self.piece.shape

    @property
    def dtype(self) -> str:
        """Safetensors dtype name."""
        return self.tensor.dtype

    @property
    def file(self) -> Path:
        """The file that holds it."""
        return self.tensor.file

    @property
    def name(self) -> str:
        """Stored name of the tensor that holds it."""
        return self.tensor.name


def read_bytes(item: TensorHeader | StoredPiece) -> bytes:
    """The stored bytes of a tensor or piece. Raises CheckpointError if the file shrank."""
    return b"".join(_chunks(item))


def hash_bytes(item: TensorHeader | StoredPiece) -> str:
    """Sha256 of the stored bytes, streamed in chunks of 8 MB."""
    digest = hashlib.sha256()
    for chunk in _chunks(item):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(item: TensorHeader | StoredPiece) -> Iterator[bytes]:
    position, left = item.start, item.nbytes
    try:
        fd = os.open(item.file, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"{item.file}: cannot be read ({error.strerror})") from None
    try:
        while left:
            chunk = os.pread(fd, min(left, _CHUNK_BYTES), position)
            if not chunk:
                raise CheckpointError(f"{item.file}: ends inside {item.name}; was it rewritten?")
            yield chunk
            position, left = position + len(chunk), left - len(chunk)
    finally:
        os.close(fd)


_NUMPY = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "BF16": "bfloat16",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "C64": "<c8",
}


def read_array(item: TensorHeader | StoredPiece) -> Any:
    """The values as a numpy array; BF16, which numpy lacks, is widened exactly to float32.

    Raises:
        CheckpointError: dtypes of 8 bits or less, which numpy cannot widen exactly by itself.
    """
    import numpy as np

    kind = _NUMPY.get(item.dtype)
    if kind is None:
        raise CheckpointError(f"{item.file}: {item.name} is {item.dtype}, which numpy cannot hold")
    raw = read_bytes(item)
    if kind == "bfloat16":
        words = np.frombuffer(raw, "<u2").astype("<u4") << np.uint32(16)
        return words.view("<f4").reshape(item.shape)
    return np.frombuffer(raw, kind).reshape(item.shape)


_TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}

_maps: WeakValueDictionary[tuple[int, ...], mmap.mmap] = WeakValueDictionary()


def load_tensor(item: TensorHeader | StoredPiece) -> Any:
    """A torch tensor over a private (copy-on-write) memory map of the file; CPU, stored dtype.

    Nothing is read before it is touched, and writing to the tensor never reaches the file.
    F4 gives `float4_e2m1fn_x2`, two numbers an element, so its last axis is halved.

    Raises:
        CheckpointError: the dtype has no torch equivalent (6-bit floats).
    """
    import torch

    dtype = getattr(torch, _TORCH.get(item.dtype, ""), None)
    if dtype is None:
        raise CheckpointError(f"{item.file}: {item.name} is {item.dtype}, which torch cannot hold")
    shape = item.shape
    if item.dtype == "F4":
        if not shape or shape[-1] % 2:
            raise CheckpointError(f"{item.file}: {item.name}: F4 needs an even last axis")
        shape = (*shape[:-1], shape[-1] // 2)
    if not item.nbytes:
        return torch.empty(shape, dtype=dtype)
    if item.start % dtype.itemsize:  # a header of odd length; torch wants aligned memory
        return torch.frombuffer(bytearray(read_bytes(item)), dtype=dtype).reshape(shape)
    count = item.nbytes // dtype.itemsize
    view = torch.frombuffer(_map(item), dtype=dtype, count=count, offset=item.start)
    return view.reshape(shape)


def _map(item: TensorHeader | StoredPiece) -> mmap.mmap:
    try:
        with item.file.open("rb") as stream:
            stat = os.fstat(stream.fileno())
            key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if stat.st_size < item.start + item.nbytes:
                raise CheckpointError(f"{item.file}: ends inside {item.name}; was it rewritten?")
            found = _maps.get(key)
            if found is None:
                found = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
                _maps[key] = found
            return found
    except OSError as error:
        raise CheckpointError(f"{item.file}: cannot be read ({error.strerror})") from None
