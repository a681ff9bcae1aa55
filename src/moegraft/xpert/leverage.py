"""Which neurons, residual dimensions and heads a smaller target keeps, or a larger one doubles."""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moegraft.xpert.decompose import Factored

_NEURON_AXIS = {"gate": 0, "up": 0, "down": 1}


def choose(scores: Float[Tensor, " size"], num: int) -> Int[Tensor, " num"]:
    """The old index at each of `num` new places.

    At most as many as there are: those with the largest scores, in their old order. More: all of
    them, followed by copies of the best, again and again. Ties go to the lower index.
    """
    size = len(scores)
    best = torch.argsort(-scores, stable=True)
    if num <= size:
        return best[:num].sort().values
    extra = best.repeat(-(-num // size) - 1)[: num - size]
    return torch.cat([torch.arange(size), extra])


def evenly(size: int, num: int) -> Int[Tensor, " num"]:
    """`num` evenly spaced indices of `size` (weight selection, arXiv:2311.18823); more: repeats."""
    return ((torch.arange(num) + 0.5) * size / num).long()


def shares(index: Int[Tensor, " num"]) -> Float[Tensor, " num"]:
    """One over the number of copies at each place: what keeps sums as they were."""
    return 1 / torch.bincount(index).float()[index]


def axis_scores(found: Factored, axis: int) -> Float[Tensor, " size"] | None:
    """Leverage of the rows (axis 0) or columns: squared norms of the factor's rows.

    None where all are alike: the factor has full rank, or there is none.
    """
    factor = found.rows if axis == 0 else found.columns
    if factor is None or factor.shape[0] == factor.shape[1]:
        return None
    return factor.square().sum(dim=1)


def norm_scores(found: Factored, axis: int) -> Float[Tensor, " size"]:
    """Squared norms of the matrix' own rows or columns, as shares of the whole."""
    squares = found.matrix().square()
    return squares.sum(dim=1 - axis) / squares.sum().clamp(min=1e-30)


def neuron_scores(layer: Mapping[str, Factored]) -> Float[Tensor, " ffn"]:
    """Leverage of each neuron, summed over its gate row, up row and down column.

    Where no factor tells neurons apart, their norms decide.
    """
    return _sum([(found, _NEURON_AXIS[name]) for name, found in layer.items()])


def hidden_scores(layers: Iterable[Mapping[str, Factored]]) -> Float[Tensor, " hidden"]:
    """Leverage of each residual dimension, summed over all layers, so that all share a choice."""
    found = [_parts(layer) for layer in layers]
    levers = [lever for lever, _ in found if lever is not None]
    return torch.stack(levers or [norm for _, norm in found]).sum(dim=0)


def _parts(layer: Mapping[str, Factored]) -> tuple[Tensor | None, Tensor]:
    """Leverage and norm of the residual dimensions of one layer, so that factors can go."""
    axes = [(found, 1 - _NEURON_AXIS[name]) for name, found in layer.items()]
    levers = [score for one in axes if (score := axis_scores(*one)) is not None]
    norms = torch.stack([norm_scores(*one) for one in axes]).sum(dim=0)
    return (torch.stack(levers).sum(dim=0) if levers else None), norms


def _sum(axes: Iterable[tuple[Factored, int]]) -> Tensor:
    axes = list(axes)
    levers = [score for one in axes if (score := axis_scores(*one)) is not None]
    return torch.stack(levers or [norm_scores(*one) for one in axes]).sum(dim=0)
