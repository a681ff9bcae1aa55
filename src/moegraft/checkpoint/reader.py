"""Open a checkpoint by its headers alone: from a folder, a Hub repository, or `nano:NAME`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moegraft.families import Family, Key, Piece


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One stored tensor: where its bytes are."""

    name: str
    dtype: str
    """Safetensors dtype name: BF16, F16, F32, F8_E4M3, U8, ..."""
    shape: tuple[int, ...]
    file: Path
    start: int
    """Absolute offset of the first byte in `file`."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """A piece of a stored tensor, with absolute byte position."""

    piece: Piece
    tensor: TensorHeader

    @property
    def start(self) -> int:
        """Absolute offset of the first byte in the tensor's file."""
        return self.tensor.start + self.piece.offset


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; holds headers, never tensors."""

    source: str
    """As the user wrote it: folder, `org/name[@revision]` or `nano:NAME`."""
    path: Path
    """The local folder that holds the files."""
    config: Mapping[str, Any]
    """config.json."""
    family: Family
    tensors: Mapping[str, TensorHeader]
    """By stored name, in file order then offset order."""
    revision: str | None = None
    """Resolved Hub commit, when the source is a Hub repository."""
    unknown: tuple[str, ...] = ()
    """Names that fit no pattern, listed only under `unknown="host"`."""

    @property
    def layout(self) -> str:
        """`published`, `fused` or `dense`."""
        raise NotImplementedError

    def pieces(self) -> Mapping[Key, StoredPiece]:
        """Every piece of every tensor by canonical key: the same for all layouts."""
        raise NotImplementedError


def open_checkpoint(
    source: str | Path,
    *,
    family_map: Path | None = None,
    unknown: str = "error",
) -> Checkpoint:
    """Open `source` by headers only."""
    raise NotImplementedError
