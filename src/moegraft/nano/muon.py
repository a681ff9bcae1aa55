"""Momentum orthogonalised by Newton-Schulz steps (Muon), in float32 and for stacks of matrices."""

from collections.abc import Iterable

import torch
from jaxtyping import Float32
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration by Jordan et al. (2024); singular values end near 1."""


def orthogonalised(
    update: Float32[Tensor, "*stack row column"], num_steps: int = 5
) -> Float32[Tensor, "*stack row column"]:
    """The nearest semi-orthogonal matrices, roughly.

    `torch.optim.Muon` computes in bfloat16, which is far slower on CPUs without such units.
    """
    a, b, c = _COEFFICIENTS
    tall = update.shape[-2] > update.shape[-1]
    matrix = update.mT if tall else update
    matrix = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(num_steps):
        gram = matrix @ matrix.mT
        matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
    return matrix.mT if tall else matrix


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; for matrices and stacks of matrices only."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter along its orthogonalised momentum."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                average = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(average, group["momentum"])
                rows, columns = parameter.shape[-2:]
                scale = max(1.0, rows / columns) ** 0.5
                parameter.sub_(orthogonalised(ahead), alpha=group["lr"] * scale)
