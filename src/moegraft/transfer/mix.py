"""Linear and spherical mixes of a host's and a donor's piece, the same for disk and live."""

import math

import torch
from torch import Tensor

from moegraft.checkpoint import StoredPiece, load_tensor
from moegraft.transfer.plan import Source

_CHUNK = 1 << 20


def fill_piece(source: Source, host: StoredPiece, donor: StoredPiece) -> Tensor:
    """The numbers that `source` puts in the place of the host's piece, from the stored bytes.

    Computed on the CPU in float32 (float64 for F64) chunk by chunk, so that peak memory is the
    result, and rounded once to the host's stored dtype. Weight 0 gives the host's and weight 1 the
    donor's numbers exactly, NaN and signed zeros included. `slerp` follows the great circle
    between the two flattened pieces (not normalised); where they are parallel or zero it is
    `linear`, as its limit is.
    """
    ours, theirs = load_tensor(host), load_tensor(donor)
    if source.rule == "take" or source.weight == 1:
        return theirs.to(ours.dtype)
    assert source.weight is not None
    if source.weight == 0:
        return ours.clone()
    out = torch.empty(ours.shape, dtype=ours.dtype)
    a, b, flat = ours.reshape(-1), theirs.reshape(-1), out.view(-1)
    share, other = _shares(source.rule, source.weight, a, b)
    wide = torch.float64 if ours.dtype == torch.float64 else torch.float32
    for start in range(0, flat.numel(), _CHUNK):
        span = slice(start, start + _CHUNK)
        flat[span] = (a[span].to(wide) * share + b[span].to(wide) * other).to(ours.dtype)
    return out


def _shares(rule: str, weight: float, a: Tensor, b: Tensor) -> tuple[float, float]:
    if rule == "linear":
        return 1 - weight, weight
    assert rule == "slerp", rule
    norms = math.sqrt(_dot(a, a)) * math.sqrt(_dot(b, b))
    cosine = _dot(a, b) / norms if norms else 1.0
    if not abs(cosine) < 1 - 1e-9:  # parallel, zero, or not finite
        return 1 - weight, weight
    angle = math.acos(cosine)
    whole = math.sin(angle)
    return math.sin((1 - weight) * angle) / whole, math.sin(weight * angle) / whole


def _dot(a: Tensor, b: Tensor) -> float:
    total = 0.0
    for start in range(0, a.numel(), _CHUNK):
        span = slice(start, start + _CHUNK)
        total += float(a[span].double() @ b[span].double())
    return total
