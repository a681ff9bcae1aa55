"""Every configuration against every other: paired differences with simultaneous intervals."""

from collections.abc import Sequence
from itertools import combinations

from moegraft.report.analysis import Block, Entry, pair
from moegraft.report.families import simultaneous

MAX_CONFIGURATIONS = 16
"""Of one condition; more make a picture that nobody can read, and thousands of pairs."""


def compare_pairs(blocks: Sequence[Block]) -> list[Entry]:
    """The difference of every pair of configurations under every condition, `a` minus `b`.

    For exploration: one family of all pairs of all conditions, so that the simultaneous intervals
    are wider than those against host and donor alone. Configurations with prompts of their own
    are left out, and those beyond the 16 of a condition that stand first in the tables.
    """
    entries, contrasts = [], []
    for block in blocks:
        if block.bootstrap is None:
            continue
        floor = 1 / block.bootstrap.num_clusters
        for b, a in combinations(block.paired[:MAX_CONFIGURATIONS], 2):
            weights = block.bootstrap.contrast(block.paired.index(a), block.paired.index(b))
            estimate = block.bootstrap.estimate(weights)
            entry: Entry = {"condition": block.condition, "a": a, "b": b}
            entry |= {"value": estimate.value, "interval": pair(estimate)}
            entries.append(entry)
            contrasts.append((entry, block, weights, floor))
    simultaneous(contrasts)
    return entries
