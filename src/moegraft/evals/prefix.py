"""Recover shared prefixes from token ids: cached prefixes, and small trees of what branches off."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

Ids = tuple[int, ...]

_WORTH_A_TREE = 8


@dataclass(slots=True)
class Prefix:
    """A run of tokens that several sequences begin with, computed once and kept in the cache."""

    tokens: Ids
    """What this node adds to its parent."""
    start: int
    """Length of everything before `tokens`."""
    members: list[int] = field(default_factory=list)
    """Positions of the sequences that continue right after this node."""
    children: list["Prefix"] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Number of tokens from the very beginning to the end of this node."""
        return self.start + len(self.tokens)


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading tokens that `a` and `b` share."""
    count = min(len(a), len(b))
    if a[:count] == b[:count]:
        return count
    low = 0
    while low + 1 < count:  # invariant: the first `low` agree, the first `count` do not
        middle = (low + count) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            count = middle
    return low


def share_prefixes(
    sequences: Sequence[Ids], *, min_tokens: int = 16, min_saved: int = 2048
) -> Prefix:
    """The tree of prefixes that are worth a forward pass of their own.

    A node is made where it adds at least `min_tokens` tokens and spares at least `min_saved`
    token computations. No prefix swallows a whole sequence: at least its last token stays outside.

    Args:
        sequences: token ids, each at least one token long.
        min_tokens: shortest node.
        min_saved: (members - 1) x tokens of the cheapest node; smaller runs are shared in a
            `Tree`, which costs no pass of its own.

    Returns:
        The root; every position of `sequences` is a member of exactly one node.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    # shared[k]: leading tokens that the k-th and the next sequence in sorted order share.
    shared = [common_length(sequences[a], sequences[b]) for a, b in pairwise(order)]
    root = Prefix((), 0)
    todo = [(root, 0, len(order))]
    while todo:
        node, first, last = todo.pop()
        links = shared[first : last - 1]
        hope = max(links, default=0) - node.length
        if hope < min_tokens or hope * len(links) < min_saved:
            node.members += order[first:last]
            continue
        weakest = min(links)
        shortest = min(len(sequences[i]) for i in order[first:last])
        length = min(weakest, shortest - 1)
        added = length - node.length
        if added >= min_tokens and added * len(links) >= min_saved:
            tokens = sequences[order[first]][node.length : length]
            node.children.append(Prefix(tokens, node.length))
            node = node.children[-1]
        cuts = [first + k + 1 for k, link in enumerate(links) if link == weakest]
        todo += [(node, a, b) for a, b in zip([first, *cuts], [*cuts, last], strict=True)]
    return root


def bundles(sequences: Sequence[Ids], start: int, max_tokens: int) -> list[list[int]]:
    """Group sequences that share tokens after their first `start` ones, to be put into one `Tree`.

    Returns:
        Positions of `sequences`, in sorted order, in groups of at most about `max_tokens` tokens.
    """
    groups: list[list[int]] = []
    size = 0
    for i in sorted(range(len(sequences)), key=sequences.__getitem__):
        before = sequences[groups[-1][-1]] if groups else ()
        shared = common_length(before, sequences[i]) - start
        own = len(sequences[i]) - start
        if groups and shared >= _WORTH_A_TREE and size + own - shared <= max_tokens:
            groups[-1].append(i)
            size += own - shared
        else:
            groups.append([i])
            size = own
    return groups


@dataclass(slots=True)
class Tree:
    """Sequences that branch off one prefix, each token once."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """Index of the token before; -1 = the last token of the prefix."""
    depths: list[int] = field(default_factory=list)
    """0 = right after the prefix."""
    _known: dict[tuple[int, int], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, ids: Sequence[int]) -> list[int]:
        """Insert a sequence; the index of each of its tokens in this tree."""
        path, parent = [], -1
        for depth, token in enumerate(ids):
            found = self._known.get((parent, token))
            if found is None:
                found = self._known[parent, token] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(parent)
                self.depths.append(depth)
            path.append(found)
            parent = found
        return path

    def visible(self) -> np.ndarray:
        """Boolean [token, token]: row i sees column j where j is i or one of its ancestors."""
        size = len(self.tokens)
        seen = np.zeros((size, size), dtype=bool)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                seen[i, : parent + 1] = seen[parent, : parent + 1]
            seen[i, i] = True
        return seen
