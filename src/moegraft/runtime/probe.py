"""Routing statistics of a live model: streamed counts by domain, layer and expert.

`RoutingCounts` adds up what `hooks.observed` hands out; `profile_texts` runs a model over texts.
Padding is left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from moegraft.families import Family
from moegraft.runtime.batches import batches
from moegraft.runtime.hooks import Routing, observed

Ids = Sequence[int]


class RoutingCounts:
    """Routing added up by domain, layer and expert: int64 counts, float64 sums, on the device.

    Memory does not grow with the number of tokens. A label of any kind may be a domain: one per
    text window gives what a bootstrap over windows needs.
    """

    def __init__(self) -> None:
        self._sums: dict[str, dict[int, _Sums]] = {}

    def observer(self, domain: str) -> Callable[[Routing], None]:
        """What to pass to `observed` while the model reads texts of `domain`."""
        layers = self._sums.setdefault(domain, {})

        def observe(routing: Routing) -> None:
            if routing.layer not in layers:
                layers[routing.layer] = _Sums.like(routing)
            layers[routing.layer].add(routing)

        return observe

    def profile(self) -> "RoutingProfile":
        """What has been counted so far, on the CPU."""
        assert self._sums and all(self._sums.values()), "nothing was observed"
        domains = tuple(self._sums)
        layers = tuple(sorted(next(iter(self._sums.values()))))
        rows = [[self._sums[domain][layer] for layer in layers] for domain in domains]
        return RoutingProfile(
            domains=domains,
            layers=layers,
            top_k=rows[0][0].top_k,
            num_tokens=np.array([row[0].num_tokens for row in rows]),
            counts=np.array([[s.counts.cpu().numpy() for s in row] for row in rows]),
            mass=np.array([[s.mass.cpu().numpy() for s in row] for row in rows]),
            entropy=np.array([[float(s.entropy) for s in row] for row in rows]),
        )


@dataclass(frozen=True, slots=True)
class RoutingProfile:
    """How often and how strongly each expert serves each domain."""

    domains: tuple[str, ...]
    layers: tuple[int, ...]
    """Layers that have a router."""
    top_k: int
    num_tokens: Int[np.ndarray, "domain"]
    counts: Int[np.ndarray, "domain layer expert"]
    """Tokens sent to each expert; over the experts of a layer they add up to top_k x tokens."""
    mass: Float[np.ndarray, "domain layer expert"]
    """Sum of the routing weights of each expert."""
    entropy: Float[np.ndarray, "domain layer"]
    """Sum over tokens of the entropy of the router's distribution, in nats."""

    @property
    def num_experts(self) -> int:
        """Experts per layer."""
        return self.counts.shape[2]

    @property
    def frequency(self) -> Float[np.ndarray, "domain layer expert"]:
        """Share of the domain's tokens sent to each expert; adds up to top_k."""
        return self.counts / self.num_tokens[:, None, None]

    @property
    def routing_mass(self) -> Float[np.ndarray, "domain layer expert"]:
        """Mean routing weight of each expert, 0 for tokens not sent to it."""
        return self.mass / self.num_tokens[:, None, None]

    @property
    def mean_frequency(self) -> Float[np.ndarray, "layer expert"]:
        """Frequency averaged over domains, every domain with equal weight."""
        return self.frequency.mean(axis=0)

    @property
    def token_entropy(self) -> Float[np.ndarray, "domain layer"]:
        """How undecided the router is about a token: mean entropy / ln E, from 0 to 1."""
        return self.entropy / self.num_tokens[:, None] / math.log(max(self.num_experts, 2))

    @property
    def load_entropy(self) -> Float[np.ndarray, "domain layer"]:
        """How evenly experts are loaded: entropy of frequency / top_k over ln E, 1 = all alike."""
        return _entropy(self.frequency / self.top_k) / math.log(max(self.num_experts, 2))

    @property
    def specialisation(self) -> Float[np.ndarray, "layer"]:
        """How much a choice of expert tells about the domain, in bits, domains with equal weight.

        The Jensen-Shannon divergence of the domains' loads: 0 when all domains use the experts
        alike, log2(number of domains) when no two domains share one.
        """
        loads = self.frequency / self.top_k
        return (_entropy(loads.mean(axis=0)) - _entropy(loads).mean(axis=0)) / math.log(2)

    @property
    def dead(self) -> tuple[tuple[int, int], ...]:
        """(layer, expert) of every expert that no token of any domain was sent to."""
        unused = np.argwhere(self.counts.sum(axis=0) == 0)
        return tuple((self.layers[place], int(expert)) for place, expert in unused)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: the raw sums and what is derived from them."""
        return {
            "domains": list(self.domains),
            "layers": list(self.layers),
            "num_experts": self.num_experts,
            "top_k": self.top_k,
            "num_tokens": self.num_tokens.tolist(),
            "counts": self.counts.tolist(),
            "frequency": self.frequency.tolist(),
            "routing_mass": self.routing_mass.tolist(),
            "token_entropy": self.token_entropy.tolist(),
            "load_entropy": self.load_entropy.tolist(),
            "specialisation": self.specialisation.tolist(),
            "dead": [list(place) for place in self.dead],
        }


@torch.no_grad()
def profile_texts(
    model: Any,
    family: Family,
    domains: Mapping[str, Sequence[Ids]],
    *,
    firsts: Mapping[str, Sequence[int]] | None = None,
    batch_tokens: int = 4096,
    on_step: Callable[[str, int], None] = lambda domain, num_tokens: None,
) -> RoutingProfile:
    """Run a model over texts and count its routing; no logits are computed.

    Args:
        model: a live model in evaluation mode; it may hold any configuration.
        family: of the model.
        domains: token ids of the texts of each domain, at least one token in all.
        firsts: by domain, the first token of each text that counts; default: all tokens.
        batch_tokens: tokens of one forward pass, padding included.
        on_step: called after each batch with its domain and number of tokens.

    Raises:
        IncompatibleError: the model has no routers.
    """
    decoder = model.get_decoder()
    device = model.get_input_embeddings().weight.device
    counts = RoutingCounts()
    for domain, texts in domains.items():
        starts = None if firsts is None else firsts[domain]
        for batch in batches(texts, batch_tokens, device, starts):
            with observed(model, family, counts.observer(domain), batch.counted):
                decoder(batch.ids, attention_mask=batch.mask.long(), use_cache=False)
            on_step(domain, sum(len(texts[row]) for row in batch.rows))
    return counts.profile()


@dataclass(slots=True)
class _Sums:
    """Running sums of one domain and layer."""

    top_k: int
    num_tokens: int
    counts: Int[Tensor, " expert"]
    mass: Float[Tensor, " expert"]
    entropy: Tensor

    @classmethod
    def like(cls, routing: Routing) -> "_Sums":
        num_experts, device = routing.logits.shape[1], routing.logits.device
        return cls(
            top_k=routing.experts.shape[1],
            num_tokens=0,
            counts=torch.zeros(num_experts, dtype=torch.int64, device=device),
            mass=torch.zeros(num_experts, dtype=torch.float64, device=device),
            entropy=torch.zeros((), dtype=torch.float64, device=device),
        )

    def add(self, routing: Routing) -> None:
        chosen = routing.experts.reshape(-1)
        self.num_tokens += len(routing.experts)
        self.counts.scatter_add_(0, chosen, torch.ones_like(chosen))
        self.mass.scatter_add_(0, chosen, routing.weights.reshape(-1).double())
        self.entropy += torch.special.entr(routing.probabilities().double()).sum()


def _entropy(shares: Float[np.ndarray, "*axes expert"]) -> Float[np.ndarray, "*axes"]:
    """Entropy over the last axis, in nats."""
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    return -(shares * logs).sum(axis=-1)
