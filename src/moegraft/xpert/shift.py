"""How training moved the routing of the same texts from one checkpoint to the next."""

from typing import Any

import numpy as np

from moegraft.errors import IncompatibleError
from moegraft.xpert.counts import RoutingTable
from moegraft.xpert.scores import best_experts

_NUM_MOVED = 5


def routing_shift(first: RoutingTable, second: RoutingTable) -> list[dict[str, Any]]:
    """Compare two models' use of their experts on the domains that both have, layer by layer.

    Returns:
        For each domain and layer: `moved`, the share of choices that go to another expert at
        least (total variation of the loads, 0 to 1); `correlation` of the frequencies;
        `in_common` of the top_k most used experts, as a share; and `experts`, those that changed
        most, with both frequencies.

    Raises:
        IncompatibleError: no common domain and layer, or other numbers of experts.
    """
    domains = [name for name in first.domains if name in second.domains]
    layers = [layer for layer in first.layers if layer in second.layers]
    sizes = [(one.num_experts, one.top_k) for one in (first, second)]
    if not (domains and layers) or sizes[0] != sizes[1]:
        raise IncompatibleError(
            f"{first.source} and {second.source}: expected counts of a common domain and layer, "
            "and equal numbers of experts"
        )
    found = []
    for domain in domains:
        before = first.frequency[first.domains.index(domain)]
        after = second.frequency[second.domains.index(domain)]
        for layer in layers:
            pair = before[first.layers.index(layer)], after[second.layers.index(layer)]
            found.append({"domain": domain, "layer": layer, **_compare(*pair, first.top_k)})
    return found


def _compare(before: np.ndarray, after: np.ndarray, top_k: int) -> dict[str, Any]:
    change = after - before
    tops = [set(best_experts(use, top_k).tolist()) for use in (before, after)]
    moved = np.argsort(-np.abs(change), kind="stable")[:_NUM_MOVED]
    varies = before.std() > 0 and after.std() > 0
    return {
        "moved": float(np.abs(change).sum() / 2 / top_k),
        "correlation": float(np.corrcoef(before, after)[0, 1]) if varies else None,
        "in_common": len(tops[0] & tops[1]) / top_k,
        "experts": [
            {"expert": int(e), "before": float(before[e]), "after": float(after[e])} for e in moved
        ],
    }
