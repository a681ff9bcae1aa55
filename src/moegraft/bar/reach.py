"""How much of a text a branch of a MoE sends to its own experts, and how far off the rest is."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from moegraft.bar.branches import Branch
from moegraft.runtime.hooks import Routing, observed
from moegraft.train.lm import token_loss
from moegraft.train.text import Blocks

_MOST_TOKENS = 4096
"""That are read to measure it."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What the routers of a branch say to some text."""

    shares: Mapping[int, float]
    """By layer, of the tokens those that reach an expert of the branch."""
    shifts: Mapping[int, float]
    """By layer, how far each number of a router row has to move until the average token would."""


def starts_silent(branch: Branch) -> bool:
    """Whether the branch was made so that no token reaches its appended experts."""
    return branch.manifest.start.get("router") == "neutral"


@torch.no_grad()
def measure_reach(model: torch.nn.Module, branch: Branch, blocks: Blocks) -> Reach:
    """Read the first tokens of `blocks`, and see what the routers do with them.

    Args:
        model: the branch, loaded.
        branch: the same on disk, for the place of its experts.
        blocks: text of its domain.
    """
    seen: dict[int, list[Routing]] = {}
    was_training = model.training
    model.eval()
    rows = range(min(len(blocks), max(1, _MOST_TOKENS // blocks.length)))
    family, first = branch.checkpoint.family, branch.first_expert
    with observed(model, family, lambda one: seen.setdefault(one.layer, []).append(one)):
        for row in rows:
            token_loss(model, blocks, [row])
    model.train(was_training)
    shares, shifts = {}, {}
    for layer, parts in seen.items():
        experts = torch.cat([part.experts for part in parts])
        logits = torch.cat([part.logits for part in parts]).float()
        hidden = torch.cat([part.hidden for part in parts]).float()
        shares[layer] = round(float((experts >= first).any(1).float().mean()), 6)
        last = logits[:, :first].topk(min(experts.shape[1], first)).values[:, -1]
        gap = (last - logits[:, first:].amax(1)).mean()
        shifts[layer] = float(gap / hidden.mean(0).abs().sum())
    return Reach(shares, shifts)
