"""How the router of a new branch starts: small random rows, zeros, or domain embeddings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moegraft.errors import BranchError

STD = 0.02
"""Of the random rows, cut at three times that, as the authors' trainer starts a router."""


def router_rows(
    start: str, layers: Sequence[int], num_experts: int, hidden: int, seed: int
) -> Mapping[int, Any]:
    """Rows [expert, hidden] in float32 (torch) by layer.

    Args:
        start: `normal`, `zero`, or the path of a .npy file with one embedding per expert, the
            same for all layers [expert, hidden], or [layer, expert, hidden].
        layers: the layers that get a router.
        num_experts: rows of each.
        hidden: width of the model.
        seed: of the random rows.

    Raises:
        BranchError: no such start, or the file's shape does not fit.
    """
    import torch

    if start == "normal":
        source = torch.Generator().manual_seed(seed)
        return {layer: _random(num_experts, hidden, source) for layer in layers}
    if start == "zero":
        return {layer: torch.zeros(num_experts, hidden) for layer in layers}
    given = _read(start)
    shape = (num_experts, hidden)
    if given.shape == shape:
        given = np.broadcast_to(given, (len(layers), *shape))
    if given.shape != (len(layers), *shape):
        raise BranchError(
            f"{start}: domain embeddings have shape {list(given.shape)}, expected {list(shape)} "
            f"or {[len(layers), *shape]}"
        )
    found = torch.tensor(given, dtype=torch.float32)
    return dict(zip(layers, found, strict=True))


def check_start(start: str) -> None:
    """Check the name of a start before anything is read.

    Raises:
        BranchError: it is neither known nor an existing file.
    """
    if start not in ("normal", "zero") and not Path(start).is_file():
        raise BranchError(
            f"router {start!r}: expected normal, zero, or a .npy file with domain embeddings"
        )


def _random(num_experts: int, hidden: int, source: Any) -> Any:
    import torch

    empty = torch.empty(num_experts, hidden)
    return torch.nn.init.trunc_normal_(empty, std=STD, a=-3 * STD, b=3 * STD, generator=source)


def _read(path: str) -> Any:
    check_start(path)
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BranchError(f"{path}: no .npy array ({error})") from None
    if not np.issubdtype(found.dtype, np.floating) or not np.isfinite(found).all():
        raise BranchError(f"{path}: expected finite floats, got {found.dtype}")
    return found
