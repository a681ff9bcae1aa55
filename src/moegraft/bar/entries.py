"""Tensors to write, from stored pieces: copied as they are, cast, or computed when written."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from moegraft.checkpoint import StoredPiece
from moegraft.checkpoint.header import DTYPE_BITS
from moegraft.checkpoint.writer import ByteRange, Entry, Produced


def copied(name: str, source: StoredPiece, dtype: str | None = None) -> Entry:
    """The piece under another name: its very bytes, or cast where `dtype` is another."""
    if dtype is None or source.dtype == dtype:
        return Entry(name, source.dtype, source.shape, (byte_range(source),))
    return computed(name, dtype, source.shape, partial(_load, source))


def computed(name: str, dtype: str, shape: tuple[int, ...], make: Callable[[], Any]) -> Entry:
    """A tensor that `make` returns (torch, any float dtype) when its turn comes."""
    return Entry(name, dtype, shape, (produced(dtype, shape, make),))


def produced(dtype: str, shape: tuple[int, ...], make: Callable[[], Any]) -> Produced:
    """The bytes of a tensor that `make` returns, rounded once to `dtype`."""
    nbytes = math.prod(shape) * DTYPE_BITS[dtype] // 8
    return Produced(nbytes, partial(_bytes, dtype, shape, make))


def byte_range(source: StoredPiece) -> ByteRange:
    """Where the piece's bytes stand."""
    return ByteRange(source.file, source.start, source.nbytes)


def _load(source: StoredPiece) -> Any:
    from moegraft.checkpoint import load_tensor

    return load_tensor(source)


def _bytes(dtype: str, shape: tuple[int, ...], make: Callable[[], Any]) -> Any:
    import torch

    from moegraft.runtime.weights import DTYPES

    made = make()
    assert tuple(made.shape) == shape, (tuple(made.shape), shape)
    return made.to(DTYPES[dtype]).contiguous().view(-1).view(torch.uint8).numpy()
