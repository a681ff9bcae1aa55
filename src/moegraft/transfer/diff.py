"""How far two checkpoints are apart: compatibility, and distances per component and layer."""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from moegraft.checkpoint import Checkpoint, StoredPiece
from moegraft.errors import CheckpointError
from moegraft.families import COMPONENTS
from moegraft.transfer.compatibility import config_differences
from moegraft.transfer.vocabulary import read_tokenizer, tokenizer_differences

_CHUNK_BYTES = 4 << 20
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class Distance(NamedTuple):
    """How far the two checkpoints are apart in one component of one layer."""

    component: str
    layer: int | None
    relative: float | None
    """||host - donor|| / ||host|| over all its numbers; None where nothing could be compared, and
    where a number is not finite."""
    cosine: float | None
    """Of the two flattened components; None as above, and where one is zero."""
    num_pieces: int
    num_identical: int
    """Pieces with the same bytes."""
    num_not_comparable: int
    """Pieces of other shape, or quantised, whose numbers were not compared (bytes were)."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two checkpoints beside each other."""

    host: str
    donor: str
    families: tuple[str, str]
    configs: tuple[dict[str, Any], ...]
    """Config fields that change the meaning of tensors and differ: `field host donor
    must_agree`."""
    tokenizers: tuple[str, ...]
    """Sentences about the tokenizers' differences."""
    dtypes: tuple[tuple[str, ...], tuple[str, ...]]
    layouts: tuple[str, str]
    only_host: tuple[str, ...]
    """Tensors without a counterpart."""
    only_donor: tuple[str, ...]
    totals: tuple[Distance, ...]
    """One row per component, over all layers; `layer` is None."""
    distances: tuple[Distance, ...]
    """One row per component and layer."""

    @property
    def transferable(self) -> bool:
        """Whether any component could move: same family and sizes."""
        blocking = any(row["must_agree"] and not row["components"] for row in self.configs)
        return self.families[0] == self.families[1] and not blocking


def compare_checkpoints(
    host: Checkpoint, donor: Checkpoint, *, on_bytes: Callable[[int], None] | None = None
) -> Comparison:
    """Compare configs, tokenizers and every number of two checkpoints in one streaming pass.

    Layouts may differ. Peak memory is a few chunks of 4 MB, no torch is needed; about a second per
    gigabyte and checkpoint. Quantised tensors (FP8, MXFP4) are compared by their bytes only.

    Args:
        host: the first checkpoint; distances are relative to its norm.
        donor: the second.
        on_bytes: progress, called with the number of the host's bytes after each step.

    Raises:
        CheckpointError: a file changed meanwhile, or a tokenizer file cannot be read.
    """
    same_family = host.family.name == donor.family.name
    ours, theirs = host.pieces(), donor.pieces()
    differences = config_differences(host, donor) if same_family else ()
    sums = _sums(host, donor, on_bytes) if same_family else {}
    return Comparison(
        host=host.source,
        donor=donor.source,
        families=(host.family.name, donor.family.name),
        configs=tuple(
            {
                "field": d.field,
                "host": d.host,
                "donor": d.donor,
                "components": list(d.components),
                "must_agree": d.must_agree,
            }
            for d in differences
        ),
        tokenizers=tokenizer_differences(read_tokenizer(host), read_tokenizer(donor)),
        dtypes=(_dtypes(host), _dtypes(donor)),
        layouts=(host.layout, donor.layout),
        only_host=_names(stored for key, stored in ours.items() if key not in theirs),
        only_donor=_names(stored for key, stored in theirs.items() if key not in ours),
        totals=tuple(
            sum((s for (c, _), s in sums.items() if c == component), _Sums()).distance(component)
            for component in dict.fromkeys(component for component, _ in sums)
        ),
        distances=tuple(found.distance(*place) for place, found in sums.items()),
    )


def _dtypes(checkpoint: Checkpoint) -> tuple[str, ...]:
    return tuple(sorted({tensor.dtype for tensor in checkpoint.tensors.values()}))


def _names(pieces: Iterator[StoredPiece]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(stored.tensor.name for stored in pieces))


@dataclass(slots=True)
class _Sums:
    """Running sums over one component of one layer, in float64."""

    host: float = 0.0
    donor: float = 0.0
    difference: float = 0.0
    num_numbers: int = 0
    num_pieces: int = 0
    num_identical: int = 0
    num_not_comparable: int = 0

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def distance(self, component: str, layer: int | None = None) -> Distance:
        relative = cosine = None
        host, donor, apart = (math.sqrt(x) for x in (self.host, self.donor, self.difference))
        if self.num_numbers and math.isfinite(host + donor + apart):
            if host:
                relative = apart / host
            if host and donor:
                # 1 - cos = (|a-b|^2 - (|a|-|b|)^2) / 2|a||b| keeps small angles that a dot loses
                cosine = 1 - (apart**2 - (host - donor) ** 2) / (2 * host * donor)
                cosine = max(-1.0, min(1.0, cosine))
        counts = (self.num_pieces, self.num_identical, self.num_not_comparable)
        return Distance(component, layer, relative, cosine, *counts)


def _sums(
    host: Checkpoint, donor: Checkpoint, on_bytes: Callable[[int], None] | None
) -> dict[tuple[str, int | None], _Sums]:
    """By component and layer, in the order of the components and ascending layers."""
    sums: dict[tuple[str, int | None], _Sums] = defaultdict(_Sums)
    theirs = donor.pieces()
    with _Files() as files:
        for key, ours in host.pieces().items():
            if key in theirs:
                _add(sums[key.component, key.layer], ours, theirs[key], files)
            if on_bytes is not None:
                on_bytes(ours.nbytes)
    return dict(sorted(sums.items(), key=_order))


def _order(item: tuple[tuple[str, int | None], _Sums]) -> tuple[int, int]:
    component, layer = item[0]
    return COMPONENTS.index(component), -1 if layer is None else layer


def _add(sums: _Sums, ours: StoredPiece, theirs: StoredPiece, files: "_Files") -> None:
    sums.num_pieces += 1
    comparable = ours.shape == theirs.shape and {ours.dtype, theirs.dtype} <= _WIDTHS.keys()
    sums.num_not_comparable += not comparable
    identical = ours.dtype == theirs.dtype and ours.nbytes == theirs.nbytes
    if not comparable and not identical:
        return
    widths = (_WIDTHS.get(ours.dtype, 1), _WIDTHS.get(theirs.dtype, 1))
    count = ours.nbytes // widths[0]
    step = _CHUNK_BYTES // max(widths)
    for start in range(0, count, step):
        size = min(step, count - start)
        a = files.read(ours, start * widths[0], size * widths[0])
        b = files.read(theirs, start * widths[1], size * widths[1])
        identical = identical and a == b
        if comparable:
            _accumulate(sums, _numbers(a, ours.dtype), _numbers(b, theirs.dtype))
    sums.num_identical += identical


def _accumulate(sums: _Sums, a: Any, b: Any) -> None:
    import numpy as np

    with np.errstate(all="ignore"):  # infinities and NaN end in None
        apart = a - b
        sums.host += float(np.dot(a, a))
        sums.donor += float(np.dot(b, b))
        sums.difference += float(np.dot(apart, apart))
    sums.num_numbers += a.size


def _numbers(raw: bytes, dtype: str) -> Any:
    """Float32 (float64 for F64) values of stored bytes; BF16 is the upper half of a float32."""
    import numpy as np

    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << np.uint32(16)).view("<f4")
    if dtype == "F16":
        return np.frombuffer(raw, "<f2").astype("<f4")
    return np.frombuffer(raw, "<f8" if dtype == "F64" else "<f4")


class _Files:
    """Open files of both checkpoints, each opened once."""

    def __init__(self) -> None:
        self.opened: dict[str, int] = {}

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *exception: object) -> None:
        for fd in self.opened.values():
            os.close(fd)

    def read(self, stored: StoredPiece, start: int, nbytes: int) -> bytes:
        name = str(stored.file)
        try:
            if name not in self.opened:
                self.opened[name] = os.open(name, os.O_RDONLY)
            raw = os.pread(self.opened[name], nbytes, stored.start + start)
        except OSError as error:
            raise CheckpointError(f"{name}: cannot be read ({error.strerror})") from None
        if len(raw) < nbytes:
            raise CheckpointError(f"{name}: ends inside {stored.name}; was it rewritten?")
        return raw
