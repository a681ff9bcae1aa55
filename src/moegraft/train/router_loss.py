"""Losses on what routers decide: load balancing, and the z-loss that keeps their logits small."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moegraft.errors import RecipeError
from moegraft.families.find import find_family
from moegraft.runtime.hooks import Routing, observed


@dataclass(frozen=True, slots=True)
class RouterLoss:
    """Coefficients of the routers' own losses, both off unless asked for.

    Raises:
        RecipeError: a coefficient is negative.
    """

    balance: float = 0.0
    """Of `load_balance`; OLMoE was pretrained with 0.01, BAR trains routers with 0."""
    z: float = 0.0
    """Of `router_z`; BAR trains routers with 1e-3."""

    def __post_init__(self) -> None:
        for name in ("balance", "z"):
            if getattr(self, name) < 0:
                raise RecipeError(f"router loss {name}: expected 0 or more")

    def __bool__(self) -> bool:
        return self.balance > 0 or self.z > 0


def load_balance(
    probabilities: Float[Tensor, "token expert"], experts: Int[Tensor, "token top_k"]
) -> Float[Tensor, ""]:
    """E times the sum over experts of (share of choices) x (mean probability); 1 when balanced.

    Switch Transformer's loss (arXiv:2101.03961, equation 4), for top-k routing divided by k as in
    OLMoE's training code. transformers' own differs: it is k when balanced, and pools all layers,
    so that one layer can make up for another.
    """
    num_experts = probabilities.shape[-1]
    chosen = torch.bincount(experts.reshape(-1), minlength=num_experts).float()
    share = chosen / chosen.sum().clamp_min(1)
    return num_experts * (share * probabilities.float().mean(0)).sum()


def router_z(logits: Float[Tensor, "token expert"]) -> Float[Tensor, ""]:
    """Mean over tokens of the squared log-sum-exp of the logits (ST-MoE, arXiv:2202.08906, 5)."""
    return logits.float().logsumexp(-1).square().mean()


Take = Callable[[Bool[Tensor, "row token"] | None], Tensor]


@contextmanager
def router_losses(model: nn.Module, loss: RouterLoss) -> Iterator[Take]:
    """Within this block, `take(mask)` returns the routers' loss of the last training forward pass.

        with router_losses(model, RouterLoss(z=1e-3)) as take:
            (model(**batch).loss + take(batch["attention_mask"].bool())).backward()

    It is the mean over layers of the weighted losses, with gradient, in float32; `mask` tells the
    tokens that count (None for all). Works in any loop and below DDP; passes without gradient are
    not seen. Memory: nothing beyond what the backward pass keeps anyway.

    Raises:
        FamilyError: the model's family is not in the catalogue.
        IncompatibleError: the model has no routers.
    """
    config = model.config.to_dict()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    seen: dict[int, Routing] = {}

    def keep(routing: Routing) -> None:
        if routing.logits.requires_grad:
            seen[routing.layer] = routing

    def take(mask: Bool[Tensor, "row token"] | None) -> Tensor:
        assert seen, "take() follows a forward pass with gradient"
        kept = None if mask is None else mask.reshape(-1)
        found = [_layer_loss(routing, loss, kept) for routing in seen.values()]
        seen.clear()
        return torch.stack(found).mean()

    with observed(model, find_family(config), keep):
        yield take


def _layer_loss(routing: Routing, loss: RouterLoss, kept: Tensor | None) -> Tensor:
    probabilities, logits, experts = routing.probabilities(), routing.logits, routing.experts
    if kept is not None:
        probabilities, logits, experts = probabilities[kept], logits[kept], experts[kept]
    total = logits.new_zeros((), dtype=torch.float32)
    if loss.balance:
        total = total + loss.balance * load_balance(probabilities, experts)
    if loss.z:
        total = total + loss.z * router_z(logits)
    return total
