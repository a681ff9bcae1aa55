"""The arms of a comparison: what each starts its FFNs from, and the knowledge that takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from moegraft.xpert.resize import Resizing
from moegraft.xpert.selection import name_expert


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to start the FFNs of a target."""

    what: str
    method: str = "tucker"
    """Of the decomposition."""
    experts: str = "chosen"
    """`chosen` by the score, `random` ones (other ones for each seed), or `all`."""
    control: str = "none"
    """See `start.Adaptation.control`."""
    fits: bool = False
    """Whether its down projections are fitted to the donor's FFNs on the texts of training."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """What it does otherwise than the recipe's resizing."""

    def knowledge_name(self, seed: int) -> str:
        """Arms that share knowledge share this name."""
        kind = f"random-{seed}" if self.experts == "random" else self.experts
        return f"{kind}-{self.method}"

    def resizing(self, of_recipe: Resizing, *, is_shallower: bool) -> Resizing:
        """The recipe's, with this arm's changes; weight selection takes the first layers."""
        changes = dict(self.changes)
        if changes.get("depth") == "first" and not is_shallower:
            changes.pop("depth")
        return replace(of_recipe, **changes)


ARMS: dict[str, Arm] = {
    "random": Arm("random numbers as transformers draws them", control="fresh"),
    "matched": Arm("random numbers at the scale of xpert's", control="matched"),
    "random_k": Arm("Tucker of randomly chosen experts", experts="random"),
    "mean": Arm("plain mean of the chosen experts", "mean"),
    "single": Arm("the best expert alone", "single"),
    "weight_selection": Arm(
        "evenly spaced neurons of all experts side by side (arXiv:2311.18823)",
        "concat",
        "all",
        changes={"select": "even", "outputs": "sum", "depth": "first"},
    ),
    "concat": Arm("the chosen experts side by side, their outputs averaged", "concat"),
    "fitted": Arm(
        "as concat, down projections fitted to the donor's FFNs on training texts (ours)",
        "concat",
        fits=True,
    ),
    "xpert": Arm("Tucker of the chosen experts, averaged: the method"),
}
BASELINE, METHOD = "random", "xpert"


def select_for(arm: Arm, chosen: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The selection that an arm takes its knowledge from, as saved by `identify`.

    Args:
        arm: whose.
        chosen: the selection by score.
        seed: of randomly chosen experts.
    """
    if arm.experts == "chosen":
        return dict(chosen)
    num = chosen["num_experts"] + (chosen.get("num_shared", 0) if arm.experts == "random" else 0)
    num_best = chosen["num_best"] if arm.experts == "random" else num
    rng = np.random.default_rng([seed, 8605])
    layers = []
    for layer in chosen["layers"]:
        order = rng.permutation(num)[:num_best] if arm.experts == "random" else range(num)
        experts = [{"expert": name_expert(int(one), chosen["num_experts"])} for one in order]
        layers.append({"layer": layer["layer"], "chosen": experts})
    return {**chosen, "score": arm.experts, "num_best": num_best, "layers": layers}
