"""How far two models agree on the same tokens, layer by layer: routing and hidden states."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moegraft.runtime.hooks import Routing

_EPSILON = 1e-30


def overlap(
    a: Int[Tensor, "token top_k"], b: Int[Tensor, "token top_k"]
) -> Float[Tensor, " token"]:
    """Share of chosen experts that two routers have in common, |A n B| / k; order is ignored."""
    return (a[:, :, None] == b[:, None, :]).any(-1).double().mean(-1)


def divergence(
    p: Float[Tensor, "token expert"], q: Float[Tensor, "token expert"]
) -> Float[Tensor, " token"]:
    """Jensen-Shannon divergence of two distributions in bits: 0 = equal, 1 = nothing in common.

    H((p + q) / 2) - (H(p) + H(q)) / 2 (Lin 1991, IEEE Trans. Inf. Theory 37:145), in float64.
    """
    p, q = p.double(), q.double()
    mixed = torch.special.entr((p + q) / 2).sum(-1)
    own = (torch.special.entr(p).sum(-1) + torch.special.entr(q).sum(-1)) / 2
    return ((mixed - own) / math.log(2)).clamp_min(0)


def distance(
    hidden: Float[Tensor, "token hidden"], reference: Float[Tensor, "token hidden"]
) -> Float[Tensor, " token"]:
    """Relative distance ||h - r|| / ||r|| of hidden states from the reference's, per token."""
    reference = reference.float()
    gap = torch.linalg.vector_norm(hidden.float() - reference, dim=-1).double()
    return gap / torch.linalg.vector_norm(reference, dim=-1).double().clamp_min(_EPSILON)


def cosine(
    hidden: Float[Tensor, "token hidden"], reference: Float[Tensor, "token hidden"]
) -> Float[Tensor, " token"]:
    """Cosine between hidden states and the reference's, per token."""
    return torch.nn.functional.cosine_similarity(hidden.float(), reference.float(), dim=-1).double()


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reference model did with one batch: one layer's tensors per entry, on the device."""

    routing: dict[int, Routing] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)

    def keep_routing(self, routing: Routing) -> None:
        """For `hooks.observed`."""
        self.routing[routing.layer] = routing

    def keep_hidden(self, layer: int, hidden: Float[Tensor, "token hidden"]) -> None:
        """For `hooks.observed_hidden`."""
        self.hidden[layer] = hidden


class Means(NamedTuple):
    """Means over tokens, one value per layer; routing for the layers that have a router."""

    overlap: list[float]
    divergence: list[float]
    distance: list[float]
    cosine: list[float]


class Agreement:
    """Running sums of how one model agrees with another; memory is a few numbers per layer."""

    def __init__(self) -> None:
        self._routing: dict[int, Tensor] = {}
        self._hidden: dict[int, Tensor] = {}
        self._routed: dict[int, int] = {}
        self._read: dict[int, int] = {}

    def add_routing(self, own: Routing, reference: Routing) -> None:
        """Count one layer of one batch."""
        parts = (
            overlap(own.experts, reference.experts),
            divergence(own.probabilities(), reference.probabilities()),
        )
        _add(self._routing, self._routed, own.layer, parts)

    def add_hidden(
        self,
        layer: int,
        own: Float[Tensor, "token hidden"],
        reference: Float[Tensor, "token hidden"],
    ) -> None:
        """Count one layer of one batch."""
        _add(self._hidden, self._read, layer, (distance(own, reference), cosine(own, reference)))

    def add(self, own: Reading, reference: Reading) -> None:
        """Count all layers of one batch."""
        for layer, routing in own.routing.items():
            self.add_routing(routing, reference.routing[layer])
        for layer, hidden in own.hidden.items():
            self.add_hidden(layer, hidden, reference.hidden[layer])

    def means(self) -> Means:
        """Over all tokens so far."""
        routing, hidden = (
            [(sums[layer] / counts[layer]).tolist() for layer in sorted(sums)]
            for sums, counts in ((self._routing, self._routed), (self._hidden, self._read))
        )
        return Means(
            overlap=[row[0] for row in routing],
            divergence=[row[1] for row in routing],
            distance=[row[0] for row in hidden],
            cosine=[row[1] for row in hidden],
        )


@torch.no_grad()
def decide_again(routers: Mapping[int, torch.nn.Module], reading: Reading) -> Reading:
    """What the routers that stand in the model now decide on the hidden states of a reading."""
    again = Reading()
    for layer, module in routers.items():
        old = reading.routing[layer]
        logits, weights, experts = module(old.hidden)
        again.keep_routing(
            Routing(layer, experts, weights, logits, old.hidden, old.scores_by_sigmoid)
        )
    return again


def _add(
    sums: dict[int, Tensor], counts: dict[int, int], layer: int, parts: tuple[Tensor, Tensor]
) -> None:
    total = torch.stack([part.sum() for part in parts])
    sums[layer] = sums[layer] + total if layer in sums else total
    counts[layer] = counts.get(layer, 0) + len(parts[0])
