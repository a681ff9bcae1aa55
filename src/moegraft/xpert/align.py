"""Put the neurons of several experts into one order, so that averaging mixes like with like."""

import torch
from jaxtyping import Int
from torch import Tensor

from moegraft.xpert.experts import ExpertStack


@torch.no_grad()
def align_neurons(stack: ExpertStack) -> tuple[ExpertStack, Int[Tensor, "expert ffn"]]:
    """Permute the neurons of every expert to fit those of the first; beyond the paper.

    A neuron is its gate row, up row and down column together; the permutation that minimises the
    summed squared distance is found exactly (Hungarian method, as in M-SMoE, arXiv:2310.01334).
    What each expert computes does not change.

    Returns:
        The aligned experts, and for each the old neuron at every new place.
    """
    from scipy.optimize import linear_sum_assignment

    first = _neurons(stack, 0)
    orders = [torch.arange(len(first))]
    for expert in range(1, len(stack.gate)):
        likeness = (first @ _neurons(stack, expert).T).cpu().double().numpy()
        _, order = linear_sum_assignment(likeness, maximize=True)
        orders.append(torch.from_numpy(order))
    order = torch.stack(orders).to(stack.gate.device)
    pick = torch.arange(len(order), device=order.device)[:, None]
    down = stack.down.transpose(1, 2)[pick, order].transpose(1, 2)
    return ExpertStack(stack.gate[pick, order], stack.up[pick, order], down), order.cpu()


def _neurons(stack: ExpertStack, expert: int) -> Tensor:
    """All weights of each neuron in a row."""
    parts = (stack.gate[expert], stack.up[expert], stack.down[expert].T)
    return torch.cat(parts, dim=1)
