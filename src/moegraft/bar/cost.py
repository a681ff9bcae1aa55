"""What a merged model will cost to store and to serve, against the host, before any training."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from moegraft.checkpoint import Checkpoint, StoredPiece
from moegraft.families import Key

ASSUMED = (
    "FLOPs per token: 2 per active weight of a matrix; attention over the context, norms, "
    "softmax and the embedding look-up are not counted",
    "memory: the weights at the checkpoint's dtype; keys and values are those of the host",
)
"""What `Cost` leaves out."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Size of one model."""

    total: int
    """Parameters."""
    active: int
    """Parameters that one token uses."""
    flops_per_token: int
    """Of one forward pass."""
    nbytes: int
    """Of the weights."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a cost is made of: parameters outside the experts, and of one expert of every layer."""

    outside: int
    """Everything but experts and routers."""
    lookup: int
    """Embedding rows that are read, not multiplied; 0 when tied, since the head multiplies them."""
    expert: int
    """One expert per layer, all layers together."""
    router_row: int
    """One router row per layer, all layers together."""
    num_experts: int
    """0 for a dense model, whose FFN counts as its one expert."""
    top_k: int
    bytes_per_parameter: float

    def cost(self, num_experts: int, top_k: int) -> Cost:
        """The cost with `num_experts` experts of which `top_k` serve a token."""
        rows = self.router_row * (num_experts if num_experts > 1 else 0)
        total = self.outside + num_experts * self.expert + rows
        active = self.outside + top_k * self.expert + rows
        flops = 2 * (active - self.lookup)
        return Cost(total, active, flops, round(total * self.bytes_per_parameter))


def sizes_of(checkpoint: Checkpoint) -> Sizes:
    """Count the parameters of a dense model or a MoE by its headers."""
    pieces = checkpoint.pieces()
    family, config = checkpoint.family, checkpoint.config
    num_experts = family.num_experts(config)
    counted = Counter[str]()
    for key, stored in pieces.items():
        if key.component != "extra":
            counted[key.component] += math.prod(stored.shape)
    ffn = "experts" if num_experts else "mlp"
    routed = {key.layer for key in pieces if key.component == ffn}
    hidden = next(s.shape[-1] for k, s in pieces.items() if k.component == "embedding")
    rest = counted.total() - counted[ffn] - counted["router"]
    nbytes = sum(stored.nbytes for stored in _plain(pieces.items()))
    return Sizes(
        outside=rest,
        lookup=0 if checkpoint.tied_embeddings else counted["embedding"],
        expert=counted[ffn] // max(1, num_experts),
        router_row=counted["router"] // num_experts if num_experts else hidden * len(routed),
        num_experts=num_experts,
        top_k=family.top_k(config),
        bytes_per_parameter=nbytes / counted.total(),
    )


def merged_costs(checkpoint: Checkpoint, domains: int, appended: int = 1) -> dict[str, Any]:
    """Costs of the host, of one branch, and of the merged model for `domains` domains.

    A dense host gets one expert per domain beside its own FFN, all active. A MoE host gets
    `appended` experts per domain, and as many stay active as before.
    """
    sizes = sizes_of(checkpoint)
    dense = sizes.num_experts == 0
    base = 1 if dense else sizes.num_experts
    counts = {"host": base, "branch": base + appended, "merged": base + domains * appended}
    costs = {
        name: sizes.cost(count, count if dense else sizes.top_k) for name, count in counts.items()
    }
    host, merged = costs["host"], costs["merged"]
    return {
        **{name: asdict(cost) for name, cost in costs.items()},
        "num_experts": counts,
        "domains": domains,
        "against_host": {
            "total": merged.total / host.total,
            "active": merged.active / host.active,
            "flops_per_token": merged.flops_per_token / host.flops_per_token,
            "memory": merged.nbytes / host.nbytes,
        },
        "assumed": list(ASSUMED),
    }


def _plain(items: Iterable[tuple[Key, StoredPiece]]) -> Iterable[StoredPiece]:
    return (stored for key, stored in items if key.component != "extra")
