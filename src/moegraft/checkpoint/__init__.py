"""Checkpoints on disk or on the Hub: headers first, bytes on demand, written aside and renamed."""

from moegraft.checkpoint.reader import Checkpoint, TensorHeader, open_checkpoint

__all__ = ["Checkpoint", "TensorHeader", "open_checkpoint"]
