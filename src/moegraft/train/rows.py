"""Rows of a parameter's leading axis (experts, tokens), also where processes share its rows out."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from moegraft.errors import RecipeError

Rows = slice | Tensor
"""Positions in the rows that this process holds: a run (indexing gives a view) or an index."""


def held(tensor: Tensor) -> Tensor:
    """The rows that this process holds, detached, over the same storage."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def held_range(tensor: Tensor) -> range:
    """Which rows of the whole tensor this process holds.

    Raises:
        RecipeError: the tensor is sharded in a way that does not leave rows together.
    """
    start, size = 0, len(tensor)
    if not isinstance(tensor, DTensor):
        return range(size)
    for axis, placement in enumerate(tensor.placements):
        if type(placement) not in (Shard, Replicate):
            raise RecipeError(f"rows cannot be frozen under placement {placement}; use fully_shard")
        if not placement.is_shard(0):
            continue
        chunk = -(-size // tensor.device_mesh.size(axis))
        first = min(chunk * tensor.device_mesh.get_local_rank(axis), size)
        start, size = start + first, min(chunk, size - first)
    assert size == len(held(tensor)), (size, tensor.placements)
    return range(start, start + size)


def held_rows(tensor: Tensor, chosen: Collection[int]) -> tuple[Rows | None, Rows | None]:
    """Where the `chosen` rows and the others are among those held here; None for none.

    Args:
        tensor: a parameter, whole or sharded.
        chosen: rows of the whole tensor.
    """
    here = held_range(tensor)
    wanted = set(chosen)
    inside = [row - here.start for row in here if row in wanted]
    outside = [row - here.start for row in here if row not in wanted]
    return _positions(inside, tensor.device), _positions(outside, tensor.device)


def runs(rows: Sequence[int]) -> list[range]:
    """Ascending `rows` as runs of neighbours."""
    found: list[range] = []
    for row in rows:
        if found and found[-1].stop == row:
            found[-1] = range(found[-1].start, row + 1)
        else:
            found.append(range(row, row + 1))
    return found


def _positions(rows: list[int], device: torch.device) -> Rows | None:
    if not rows:
        return None
    if rows[-1] - rows[0] + 1 == len(rows):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows, device=device)
