"""A checkpoint's tensors under live names, read from its files each time one is asked for."""

import copy
import os
from collections.abc import Iterator, Mapping
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moegraft.checkpoint import Checkpoint
from moegraft.errors import CheckpointError, FamilyError, IncompatibleError
from moegraft.runtime.placement import Placement

Weights = Mapping[str, Tensor]
"""Tensors by live name."""

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Stored dtypes that are plain numbers; everything else needs transformers to decode it."""

_CHUNK_BYTES = 1 << 20
_OWN_PAGES_BYTES = 1 << 17
"""Tensors from this size on are mapped for themselves, as the C library does at first."""


class _Read(NamedTuple):
    """A run of stored bytes, and where its elements go."""

    file: Path
    start: int
    nbytes: int
    dtype: torch.dtype
    at: int
    """First element in the flattened live tensor."""


class StreamedWeights(Mapping[str, Any]):  # Any: checking its type must not read a tensor
    """Live tensors assembled from stored bytes on demand; holds headers, never tensors.

    Reading costs one new tensor, in the live dtype, and leaves no file mapped. Published experts
    are stacked as the live module has them, tied names lead to the one stored tensor, and values
    are bit-identical to `from_pretrained`'s.
    """

    def __init__(self, checkpoint: Checkpoint, like: Weights, tied: Mapping[str, str]) -> None:
        """Find the bytes of every tensor, without reading one; they will be read to the CPU.

        Args:
            checkpoint: where the bytes are.
            like: shapes and dtypes by live name; may be on the meta device.
            tied: for each live name that need not be stored, the name that it shares.

        Raises:
            IncompatibleError: a tensor is not stored, or has another shape or a packed dtype.
        """
        self.checkpoint = checkpoint
        self.placement = Placement.on("cpu")
        self._like = {name: (tuple(t.shape), t.dtype) for name, t in like.items()}
        self.reads: dict[str, tuple[_Read, ...]] = {}
        for name, tensor in like.items():
            try:
                self.reads[name] = _reads(checkpoint, name, tensor)
            except IncompatibleError:
                if name not in tied:
                    raise
                self.reads[name] = _reads(checkpoint, tied[name], like[tied[name]])

    def on(self, placement: Placement) -> "StreamedWeights":
        """The same tensors, to be read to where `placement` says."""
        other = copy.copy(self)
        other.placement = placement
        return other

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor. Raises CheckpointError when its file has changed or gone."""
        shape, dtype = self._like[name]
        device = self.placement.device_of(name)
        tensor = _room(torch.Size(shape), dtype, pinned=device.type == "cuda")
        flat = tensor.view(-1)
        for read in self.reads[name]:
            if read.dtype == dtype:
                _fill(flat[read.at : read.at + read.nbytes // dtype.itemsize], read)
            else:
                raw = torch.empty(read.nbytes // read.dtype.itemsize, dtype=read.dtype)
                _fill(raw, read)
                flat[read.at : read.at + raw.numel()].copy_(raw)
        return tensor.to(device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._like)

    def __len__(self) -> int:
        return len(self._like)

    def nbytes(self, name: str) -> int:
        """Size of one live tensor."""
        shape, dtype = self._like[name]
        return torch.Size(shape).numel() * dtype.itemsize

    def equals(self, other: "StreamedWeights", name: str) -> bool:
        """Whether both checkpoints give `name` the same bits; stops reading at the first other."""
        ours, theirs = self.reads[name], other.reads[name]
        if [(r.dtype, r.nbytes) for r in ours] != [(r.dtype, r.nbytes) for r in theirs]:
            return same_bits(self[name], other[name])
        return all(
            _bytes(a.file, a.start + at, size) == _bytes(b.file, b.start + at, size)
            for a, b in zip(ours, theirs, strict=True)
            for at in range(0, a.nbytes, _CHUNK_BYTES)
            for size in [min(_CHUNK_BYTES, a.nbytes - at)]
        )


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit (-0.0 and NaN payloads included)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.detach().view(kind), b.detach().view(kind))


def _room(shape: torch.Size, dtype: torch.dtype, *, pinned: bool) -> Tensor:
    """An uninitialised tensor whose memory goes back to the system as soon as it is dropped.

    The C library keeps freed blocks of up to 32 MB for later and finds no use for them when sizes
    alternate: switching a model of 860 MB left half a model of them behind.
    """
    nbytes = shape.numel() * dtype.itemsize
    if pinned or nbytes < _OWN_PAGES_BYTES:
        return torch.empty(shape, dtype=dtype, pin_memory=pinned)
    return torch.frombuffer(mmap(-1, nbytes), dtype=dtype).view(shape)


def _reads(checkpoint: Checkpoint, name: str, like: Tensor) -> tuple[_Read, ...]:
    try:
        pieces = checkpoint.family.pieces(name, like.shape, like.numel() * like.element_size())
    except FamilyError as error:
        raise IncompatibleError(str(error)) from error
    stored = checkpoint.pieces()
    made: list[_Read] = []
    for piece in pieces:
        found = stored.get(piece.key)
        where = f"{checkpoint.source}: {piece.key} (live tensor {name})"
        if found is None:
            raise IncompatibleError(f"{where} is not stored")
        if found.tensor.dtype not in DTYPES:
            raise IncompatibleError(f"{where} is stored as {found.tensor.dtype}, which is packed")
        if found.piece.shape != piece.shape:
            raise IncompatibleError(
                f"{where} has shape {list(found.piece.shape)}, expected {list(piece.shape)}"
            )
        _append(
            made,
            _Read(
                found.tensor.file,
                found.start,
                found.piece.nbytes,
                DTYPES[found.tensor.dtype],
                piece.offset // like.element_size(),
            ),
        )
    return tuple(made)


def _append(made: list[_Read], read: _Read) -> None:
    """Add `read`, as a longer last read where the two touch in file and tensor."""
    if made:
        last = made[-1]
        follows = last.at + last.nbytes // last.dtype.itemsize == read.at
        touches = last.file == read.file and last.start + last.nbytes == read.start
        if follows and touches and last.dtype == read.dtype:
            made[-1] = last._replace(nbytes=last.nbytes + read.nbytes)
            return
    made.append(read)


def _fill(flat: Tensor, read: _Read) -> None:
    view = flat.view(torch.uint8).numpy().data
    try:
        with read.file.open("rb", buffering=0) as file:
            at = 0
            while at < read.nbytes:
                got = os.preadv(file.fileno(), [view[at:]], read.start + at)
                if got == 0:
                    raise CheckpointError(f"{read.file}: truncated since it was opened")
                at += got
    except OSError as error:
        raise CheckpointError(f"{read.file}: cannot be read: {error.strerror}") from error


def _bytes(file: Path, start: int, nbytes: int) -> bytes:
    with file.open("rb", buffering=0) as handle:
        return os.pread(handle.fileno(), nbytes, start)
