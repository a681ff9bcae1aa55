"""What the chosen experts of one layer have in common: Tucker, and the alternatives to it."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moegraft.errors import RecipeError
from moegraft.xpert.align import align_neurons
from moegraft.xpert.experts import MATRICES, ExpertStack
from moegraft.xpert.ranks import HALF, Ranks, energy_rank
from moegraft.xpert.tucker import Tucker, tucker

METHODS = ("tucker", "svd", "mean", "single", "concat")
COLLAPSED = 0.3
"""Below this sum of beta, or norm against the experts' mean norm, the average has collapsed."""


@dataclass(frozen=True, slots=True)
class Decomposition:
    """How experts become knowledge."""

    method: str = "tucker"
    """`tucker` (the paper); `svd` of the plain mean; `mean`; `single`, the best expert; `concat`,
    all of them side by side as one wide FFN."""
    ranks: Ranks = HALF
    """Of `tucker`; `svd` keeps the smaller of the ranks of rows and columns."""
    num_sweeps: int = 2
    align: bool = False
    """Align neurons first; not in the paper."""
    safe: bool = True
    """Keep all directions across experts where the averaged expert collapses; not in the paper."""
    num_groups: int = 1
    """Cut the chosen experts of a layer into so many groups, by rank, and decompose each apart:
    material for FFNs wider than an expert, and for the experts of a MoE. Not in the paper."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise RecipeError(f"method {self.method!r}: expected one of {', '.join(METHODS)}")
        if self.num_sweeps < 0:
            raise RecipeError(f"--sweeps: expected a number of at least 0, got {self.num_sweeps}")
        if self.num_groups < 1:
            raise RecipeError(f"--groups: expected a number of at least 1, got {self.num_groups}")


@dataclass(frozen=True, slots=True)
class Factored:
    """A matrix as rows @ core @ columns', or whole in `core` where the other two are None."""

    core: Float[Tensor, "r1 r2"]
    rows: Float[Tensor, "rows r1"] | None
    columns: Float[Tensor, "columns r2"] | None
    diagnostics: dict[str, Any]
    """`ranks` of rows, columns and experts; `retained_energy` of the experts' squared norm;
    `beta`, the weight of each expert; `sum_beta`, 1 = the average is all there; `norm_ratio`,
    norm against the mean norm of the experts, and `mean_norm_ratio`, that of the plain mean;
    `collapsed` and `made_safe`."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        rows = self.core.shape[0] if self.rows is None else self.rows.shape[0]
        return rows, self.core.shape[1] if self.columns is None else self.columns.shape[0]

    def matrix(self) -> Float[Tensor, "rows columns"]:
        """The matrix itself."""
        if self.rows is None or self.columns is None:
            return self.core
        return self.rows @ self.core @ self.columns.T


@torch.no_grad()
def decompose_layer(
    stack: ExpertStack, how: Decomposition, where: str = "layer"
) -> dict[str, Factored]:
    """The knowledge of one layer by matrix; gate, up and down are decomposed apart.

    Args:
        stack: the chosen experts, best first, in float32 or float64.
        how: the decomposition.
        where: names the layer in messages.

    Raises:
        RecipeError: a rank is larger than its axis.
    """
    if how.align:
        stack, _ = align_neurons(stack)
    return {name: _factor(stack.matrix(name), name, how, f"{where}:") for name in MATRICES}


def _factor(
    stack: Float[Tensor, "expert rows columns"], name: str, how: Decomposition, where: str
) -> Factored:
    if how.method == "tucker":
        return _by_tucker(stack, name, how, where)
    if how.method == "concat":
        whole = torch.cat(list(stack), dim=1 if name == "down" else 0)
        return _plain(stack, whole)
    if how.method == "single":
        return _plain(stack, stack[0].clone(), torch.eye(len(stack))[0])
    mean = stack.mean(dim=0)
    beta = torch.full((len(stack),), 1 / len(stack))
    if how.method == "mean":
        return _plain(stack, mean, beta)
    ranks = how.ranks.resolve(name, _shape(stack), where)
    return _by_svd(stack, mean, beta, ranks, how)


def _by_tucker(
    stack: Float[Tensor, "expert rows columns"], name: str, how: Decomposition, where: str
) -> Factored:
    ranks = how.ranks.resolve(name, _shape(stack), where)
    options = {"energy": how.ranks.energy, "num_sweeps": how.num_sweeps}
    found = tucker(stack, ranks, **options)
    collapsed = float(found.beta.sum()) < COLLAPSED
    if collapsed and how.safe:
        inner = found.core.shape[1:] if ranks is None else ranks[:2]
        found = tucker(stack, (*inner, len(stack)), num_sweeps=how.num_sweeps)
    return _from_tucker(stack, found, collapsed=collapsed, made_safe=collapsed and how.safe)


def _from_tucker(
    stack: Float[Tensor, "expert rows columns"], found: Tucker, *, collapsed: bool, made_safe: bool
) -> Factored:
    r3, r1, r2 = found.core.shape
    core = found.averaged_core
    about = {
        "ranks": [r1, r2, r3],
        "retained_energy": _energy(found.core) / max(_energy(stack), 1e-300),
        **_weights(found.beta),
        **_norms(stack, core),
        "collapsed": collapsed,
        "made_safe": made_safe,
    }
    return Factored(core, found.rows, found.columns, about)


def _by_svd(
    stack: Float[Tensor, "expert rows columns"],
    mean: Float[Tensor, "rows columns"],
    beta: Float[Tensor, " expert"],
    ranks: tuple[int, int, int] | None,
    how: Decomposition,
) -> Factored:
    left, values, right = torch.linalg.svd(mean, full_matrices=False)
    if ranks is None:
        assert how.ranks.energy is not None
        total = _energy(mean)
        spectrum = values.double().square().tolist()
        rank = energy_rank(spectrum, (1 - how.ranks.energy) * total)
    else:
        rank = min(ranks[:2])
    core = torch.diag(values[:rank])
    plain = _plain(stack, core, beta)
    about = {**plain.diagnostics, "ranks": [rank, rank, len(stack)]}
    about["retained_energy"] = _energy(core) / max(_energy(mean), 1e-300)
    return replace(plain, rows=left[:, :rank], columns=right[:rank].T, diagnostics=about)


def _plain(
    stack: Float[Tensor, "expert rows columns"],
    whole: Float[Tensor, "r1 r2"],
    beta: Float[Tensor, " expert"] | None = None,
) -> Factored:
    """A whole matrix; its norm says how much of the experts is left in it."""
    about = {
        "ranks": [*whole.shape, len(stack)],
        "retained_energy": None,
        **({"beta": None, "sum_beta": None} if beta is None else _weights(beta)),
        **_norms(stack, whole),
        "collapsed": False,
        "made_safe": False,
    }
    return Factored(whole, None, None, about)


def _weights(beta: Float[Tensor, " expert"]) -> dict[str, Any]:
    return {"beta": beta.tolist(), "sum_beta": float(beta.sum())}


def _norms(
    stack: Float[Tensor, "expert rows columns"], core: Float[Tensor, "r1 r2"]
) -> dict[str, float]:
    """Norms against the mean norm of the experts; a core has the norm of its matrix."""
    usual = float(torch.linalg.matrix_norm(stack).double().mean())
    usual = usual if usual > 0 else math.inf
    return {
        "norm_ratio": math.sqrt(_energy(core)) / usual,
        "mean_norm_ratio": math.sqrt(_energy(stack.mean(dim=0))) / usual,
    }


def _energy(tensor: Tensor) -> float:
    return float(tensor.square().sum(dtype=torch.float64))


def _shape(stack: Float[Tensor, "expert rows columns"]) -> tuple[int, int, int]:
    return stack.shape[1], stack.shape[2], stack.shape[0]
