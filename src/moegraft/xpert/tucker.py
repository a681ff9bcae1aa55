"""Tucker decomposition of a stack of matrices by higher-order orthogonal iteration (HOOI).

K matrices [rows, columns] are approximated by core x1 experts x2 rows x3 columns with orthonormal
factors (Tucker 1966; De Lathauwer, De Moor and Vandewalle 2000). The expert axis comes first here
and last in the method's text. A factor holds leading singular vectors of an unfolding, found from
the Gram matrix of its shorter side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from moegraft.xpert.ranks import energy_rank


@dataclass(frozen=True, slots=True)
class Tucker:
    """Orthonormal factors and core. Signs and rotations are arbitrary: compare products only."""

    core: Float[Tensor, "r3 r1 r2"]
    experts: Float[Tensor, "expert r3"]
    rows: Float[Tensor, "rows r1"]
    columns: Float[Tensor, "columns r2"]

    def full(self) -> Float[Tensor, "expert rows columns"]:
        """The approximation itself, in the memory of the whole stack."""
        inner = torch.einsum("cab,kc->kab", self.core, self.experts)
        return self.rows @ inner @ self.columns.T

    @property
    def beta(self) -> Float[Tensor, " expert"]:
        """Weight of each expert in the averaged expert: U3 U3' 1 / K; all 1/K at full rank."""
        return self.experts @ self.experts.mean(dim=0)

    @property
    def averaged_core(self) -> Float[Tensor, "r1 r2"]:
        """The core with the expert axis averaged out: rows @ it @ columns' is the mean expert.

        It equals P1 (sum over k of beta_k W_k) P2 with the projections P1 and P2 of the factors.
        """
        return torch.einsum("cab,c->ab", self.core, self.experts.mean(dim=0))


@torch.no_grad()
def tucker(
    stack: Float[Tensor, "expert rows columns"],
    ranks: Sequence[int] | None,
    *,
    energy: float | None = None,
    num_sweeps: int = 2,
) -> Tucker:
    """Decompose a stack; memory is about three times the stack.

    Starts from the sequentially truncated HOSVD (Vannieuwenhoven et al. 2012) and improves it by
    `num_sweeps` sweeps over the axes; the retained energy never falls. Everything is computed
    in the stack's dtype.

    Args:
        stack: float32 or float64, on any device.
        ranks: of rows, columns and experts, at most their sizes. A rank that the other two cannot
            fill is lowered (the rank of an axis is at most the product of the others).
        energy: instead of ranks, the share of the squared norm to keep at least. Each axis may
            lose a third of the rest, and what the truncation loses is the sum over the axes.
        num_sweeps: 0 leaves the HOSVD.
    """
    assert (ranks is None) != (energy is None)
    r1, r2, r3 = (None, None, None) if ranks is None else _fillable(*ranks)
    allowed = 0.0
    if energy is not None:
        allowed = (1 - energy) / 3 * float(stack.double().square().sum())
    experts = _leading(stack.flatten(1), r3, allowed)
    few = _along(stack, experts)
    rows = _leading(few.movedim(1, 0).flatten(1), r1, allowed)
    narrow = rows.T @ few
    columns = _leading(narrow.movedim(2, 0).flatten(1), r2, allowed)
    r1, r2, r3 = rows.shape[1], columns.shape[1], experts.shape[1]
    num_truncated = sum(one < size for one, size in zip((r3, r1, r2), stack.shape, strict=True))
    for _ in range(num_sweeps if num_truncated > 1 else 0):  # one truncated axis is solved already
        if r3 < len(stack):
            experts = _leading((rows.T @ stack @ columns).flatten(1), r3)
            few = _along(stack, experts)
        rows = _leading((few @ columns).movedim(1, 0).flatten(1), r1)
        narrow = rows.T @ few
        columns = _leading(narrow.movedim(2, 0).flatten(1), r2)
    return Tucker(rows.T @ few @ columns, experts, rows, columns)


def _along(
    stack: Float[Tensor, "expert rows columns"], experts: Float[Tensor, "expert r3"]
) -> Float[Tensor, "r3 rows columns"]:
    """The stack in the coordinates of the expert factor."""
    return (experts.T @ stack.flatten(1)).reshape(-1, *stack.shape[1:])


def _leading(
    matrix: Float[Tensor, "long rest"], rank: int | None, allowed: float = 0.0
) -> Float[Tensor, "long kept"]:
    """Leading left singular vectors: `rank` of them, or as few as lose the `allowed` energy."""
    size, rest = matrix.shape
    if rank == size:
        return torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    is_wide = rest >= size
    gram = matrix @ matrix.T if is_wide else matrix.T @ matrix
    values, vectors = torch.linalg.eigh(gram)
    if rank is None:
        rank = energy_rank(values.flip(0).clamp(min=0).tolist(), allowed)
    vectors = vectors.flip(1)[:, :rank]
    if is_wide:
        return vectors
    found, _ = torch.linalg.qr(matrix @ vectors)  # orthonormal where singular values are tiny too
    return found


def _fillable(r1: int, r2: int, r3: int) -> tuple[int, int, int]:
    """Lower each rank to the product of the others."""
    for _ in range(2):
        r1, r2, r3 = min(r1, r2 * r3), min(r2, r1 * r3), min(r3, r1 * r2)
    return r1, r2, r3
