"""Low-rank training of chosen experts of fused parameters, folded into them afterwards.

peft (0.21) can adapt a fused parameter (`target_parameters`), but always all of its experts, and
it renames the modules around it. Here only the chosen experts get factors, names stay as they
are, and folding leaves every other expert's bits alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moegraft.errors import RecipeError

DOWN, UP = "_lowrank_down", "_lowrank_up"
"""Suffixes of the factors' names: `experts.gate_up_proj_lowrank_down`."""


@dataclass(frozen=True)
class _Adapted:
    owner: nn.Module
    attribute: str
    rows: tuple[int, ...]
    scale: float

    @property
    def factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        return getattr(self.owner, self.attribute + DOWN), getattr(self.owner, self.attribute + UP)

    def delta(self) -> Float[Tensor, "row out into"]:
        """What is added to the adapted experts, in the factors' dtype."""
        down, up = self.factors
        return self.scale * (up @ down)

    def adapted(self) -> Float[Tensor, "expert out into"]:
        """The whole parameter with the adapted experts, with gradient to the factors."""
        whole = self.owner._parameters[self.attribute]
        assert whole is not None
        index = torch.tensor(self.rows, device=whole.device)
        return whole.index_add(0, index, self.delta().to(whole.dtype))


class LowRank:
    """Factors beside a model's experts; what trains is `names`."""

    def __init__(self, adapted: Mapping[str, _Adapted]) -> None:
        """Made by `add_low_rank`."""
        self._adapted = dict(adapted)
        self._handles: list[Any] = []
        by_owner: dict[int, list[_Adapted]] = {}
        for one in self._adapted.values():
            by_owner.setdefault(id(one.owner), []).append(one)
        for group in by_owner.values():
            owner = group[0].owner
            self._handles += [
                owner.register_forward_pre_hook(partial(_put_on, group)),
                owner.register_forward_hook(partial(_take_off, group), always_call=True),
            ]

    @property
    def names(self) -> tuple[str, ...]:
        """Live names of the factors."""
        return tuple(name + suffix for name in self._adapted for suffix in (DOWN, UP))

    @torch.no_grad()
    def fold(self) -> None:
        """Add the factors' product to their experts, and remove every trace of them."""
        for handle in self._handles:
            handle.remove()
        for one in self._adapted.values():
            whole, delta = getattr(one.owner, one.attribute), one.delta()
            for place, row in enumerate(one.rows):
                whole[row] += delta[place].to(whole.dtype)
            for suffix in (DOWN, UP):
                delattr(one.owner, one.attribute + suffix)
        self._adapted.clear()


def add_low_rank(
    model: nn.Module,
    rows: Mapping[str, tuple[int, ...]],
    rank: int,
    *,
    alpha: float | None = None,
    seed: int = 0,
) -> LowRank:
    """Give each chosen expert of a fused parameter [expert, out, in] factors of rank `rank`.

    The product of the factors starts at zero. Optimizer state and gradients that are kept are
    those of the factors alone; a forward pass holds one more copy of each adapted parameter, which
    gradient checkpointing limits to one layer. To train, open `names` and nothing of the
    parameters themselves.

        low_rank = add_low_rank(model, {"model.layers.0.mlp.experts.down_proj": (1,)}, 16)
        frozen = freeze(model, Trainable(whole=low_rank.names))
        ...
        low_rank.fold()

    Args:
        model: the live model.
        rows: experts by live parameter name.
        rank: of the product.
        alpha: the product is multiplied by alpha / rank; default: twice the rank.
        seed: of the factors.

    Raises:
        RecipeError: the rank is not positive, or a parameter has no three axes.
    """
    if rank < 1:
        raise RecipeError(f"rank of low-rank training: expected at least 1, got {rank}")
    scale = 2.0 if alpha is None else alpha / rank
    source = torch.Generator().manual_seed(seed)
    adapted = {}
    for name, chosen in rows.items():
        module, _, attribute = name.rpartition(".")
        owner = model.get_submodule(module)
        whole = getattr(owner, attribute)
        if whole.ndim != 3:
            raise RecipeError(f"{name}: low-rank training is for fused experts, got {whole.ndim}-D")
        _, out, into = whole.shape
        start = torch.randn((len(chosen), rank, into), generator=source) / into**0.5
        down = nn.Parameter(start.to(whole))
        up = nn.Parameter(whole.new_zeros((len(chosen), out, rank)))
        owner.register_parameter(attribute + DOWN, down)
        owner.register_parameter(attribute + UP, up)
        adapted[name] = _Adapted(owner, attribute, chosen, scale)
    return LowRank(adapted)


def _put_on(group: list[_Adapted], module: nn.Module, _inputs: Any) -> None:
    """Before the forward pass: let the adapted parameter stand in front of the frozen one."""
    for one in group:
        module.__dict__[one.attribute] = one.adapted()


def _take_off(group: list[_Adapted], module: nn.Module, _inputs: Any, _output: Any) -> None:
    for one in group:
        module.__dict__.pop(one.attribute, None)
