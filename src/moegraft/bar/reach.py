"""How much of a text a branch of a MoE sends to its own experts, layer by layer."""

import torch

from moegraft.bar.branches import Branch
from moegraft.runtime.hooks import Routing, observed
from moegraft.train.lm import token_loss
from moegraft.train.text import Blocks

_MOST_TOKENS = 4096
"""That are read to measure it."""


def starts_silent(branch: Branch) -> bool:
    """Whether the branch was made so that no token reaches its appended experts."""
    return branch.manifest.start.get("router") == "neutral"


@torch.no_grad()
def shares_reached(model: torch.nn.Module, branch: Branch, blocks: Blocks) -> list[float]:
    """By layer, the share of the first tokens of `blocks` that reach an expert of the branch.

    Args:
        model: the branch, loaded.
        branch: the same on disk, for the place of its experts.
        blocks: text of its domain.
    """
    reached: dict[int, list[torch.Tensor]] = {}

    def count(routing: Routing) -> None:
        own = (routing.experts >= branch.first_expert).any(1)
        reached.setdefault(routing.layer, []).append(own)

    was_training = model.training
    model.eval()
    rows = range(min(len(blocks), max(1, _MOST_TOKENS // blocks.length)))
    with observed(model, branch.checkpoint.family, count):
        for row in rows:
            token_loss(model, blocks, [row])
    model.train(was_training)
    return [round(float(torch.cat(own).float().mean()), 6) for own in reached.values()]
