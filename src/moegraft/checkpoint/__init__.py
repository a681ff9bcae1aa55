"""Checkpoints on disk or on the Hub: headers first, bytes on demand, written aside and renamed."""

from moegraft.checkpoint.header import TensorHeader
from moegraft.checkpoint.reader import Checkpoint, open_checkpoint
from moegraft.checkpoint.tensors import StoredPiece, load_tensor, read_array, read_bytes

__all__ = [
    "Checkpoint",
    "StoredPiece",
    "TensorHeader",
    "load_tensor",
    "open_checkpoint",
    "read_array",
    "read_bytes",
]
