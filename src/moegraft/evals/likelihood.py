"""Log-likelihoods over shared prefixes: every distinct token of a task is computed once."""

import logging
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from moegraft.errors import ResourceError
from moegraft.evals.condition import Pair
from moegraft.evals.judge import Likelihood
from moegraft.evals.prefix import Ids, Prefix, Tree, bundles, share_prefixes
from moegraft.evals.slots import Forward, SlotCache, is_out_of_memory, load_prefix

_log = logging.getLogger(__name__)

_ROW_TOKENS = 512
"""Several trees share a row up to this length when a prefix stands before them anyway."""
_READ_ROWS = 256
"""Rows of logits that are turned into float32 at a time."""


@dataclass(slots=True)
class _Reading:
    """Where one pair's log-probability is read off: logits at `nodes`, of tokens `targets`."""

    pair: int
    nodes: list[int]
    targets: Ids


@dataclass(slots=True)
class _Block:
    """A tree and what is read off it."""

    tree: Tree
    readings: list[_Reading]


def likelihoods(
    forward: Forward, pairs: Sequence[Pair], max_tokens: int
) -> Iterator[tuple[int, Likelihood]]:
    """Log-likelihood of each pair's continuation; yields (position, result) batch by batch.

    Contexts that begin alike share one cached prefix; what branches off it (questions, and the
    choices of each question) is packed into rows in which every token sees its own ancestors
    only. A continuation of one token costs nothing beyond its context.

    Args:
        forward: the model.
        pairs: contexts and continuations, each at least one token long.
        max_tokens: tokens of one forward pass; halved when memory runs out.

    Raises:
        ResourceError: a single sequence does not fit into memory.
    """
    fitted = [fit(pair, forward.max_length) for pair in pairs]
    if not forward.shares:
        yield from _plain(forward, fitted, max_tokens)
        return
    by_context: dict[Ids, list[int]] = defaultdict(list)
    for i, pair in enumerate(fitted):
        if not pair.continuation:
            yield i, Likelihood(0.0, True)
        else:
            by_context[pair.context].append(i)
    contexts = list(by_context)
    members = list(by_context.values())
    cache = SlotCache(forward.num_layers)
    todo = [share_prefixes(contexts)] if contexts else []
    while todo:
        node = todo.pop()
        todo += node.children
        # Depth first: what row 0 holds before `node.start` is what the last visited parent left,
        # and siblings overwrite only what lies behind it.
        load_prefix(forward, cache, node.tokens, node.start, cache.num_rows or 1)
        blocks = _blocks(node, contexts, members, fitted)
        yield from _run(forward, cache, node.length, blocks, max_tokens)


def fit(pair: Pair, max_length: int) -> Pair:
    """Cut a pair from the left to what the model can see, as lm-eval does."""
    surplus = len(pair.context) + len(pair.continuation) - (max_length + 1)
    if surplus <= 0:
        return pair
    _log.warning(
        "cutting %d tokens from the left of a prompt, the model sees %d", surplus, max_length
    )
    kept = pair.context[surplus:] or pair.context[-1:]
    return Pair(kept, pair.continuation)


def _blocks(
    node: Prefix, contexts: list[Ids], members: list[list[int]], pairs: Sequence[Pair]
) -> list[_Block]:
    """Trees for the contexts of one node; contexts that still share tokens share a tree."""
    own = node.members
    groups = bundles([contexts[i] for i in own], node.length, _ROW_TOKENS)
    return [
        _block(node.length, [j for k in group for j in members[own[k]]], pairs) for group in groups
    ]


def _block(start: int, chosen: list[int], pairs: Sequence[Pair]) -> _Block:
    tree, readings = Tree(), []
    for i in chosen:
        pair = pairs[i]
        path = tree.add((pair.context + pair.continuation)[start:-1])
        first = len(pair.context) - start - 1
        readings.append(_Reading(i, path[first:], pair.continuation))
    return _Block(tree, readings)


def _run(
    forward: Forward, cache: SlotCache, start: int, blocks: list[_Block], max_tokens: int
) -> Iterator[tuple[int, Likelihood]]:
    """Score blocks behind a loaded prefix of `start` tokens, longest first."""
    waiting = sorted(blocks, key=lambda block: len(block.tree))
    filled = cache.num_rows
    while waiting:
        rows, taken = _pack(waiting, min(_ROW_TOKENS, start), max_tokens)
        try:
            if len(rows) > filled:
                cache.spread(0, start, len(rows))
                filled = len(rows)
            found = _score(forward, cache, start, rows)
        except RuntimeError as error:
            max_tokens = _back_off(error, max_tokens, len(taken))
            waiting = sorted([*waiting, *taken], key=lambda block: len(block.tree))
            continue
        yield from found


def _pack(
    waiting: list[_Block], row_tokens: int, max_tokens: int
) -> tuple[list[list[_Block]], list[_Block]]:
    """Take blocks that fit one pass, longest first, in rows that are filled as far as possible."""
    sizes = [len(block.tree) for block in waiting]
    capacity = max(sizes[-1], row_tokens)
    total = min(sum(sizes), max_tokens)
    capacity = max(sizes[-1], -(-total // -(-total // capacity)))  # equally full rows
    rows: list[list[_Block]] = []
    taken: list[_Block] = []
    while waiting and (not rows or (len(rows) + 1) * capacity <= max_tokens):
        rows.append([])
        room = capacity
        while (best := bisect_right(sizes, room)) > 0:
            room -= sizes.pop(best - 1)
            taken.append(waiting.pop(best - 1))
            rows[-1].append(taken[-1])
    return rows, taken


def _score(
    forward: Forward, cache: SlotCache, start: int, rows: list[list[_Block]]
) -> list[tuple[int, Likelihood]]:
    width = max(sum(len(block.tree) for block in row) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    positions = np.full((len(rows), width), start, dtype=np.int64)
    sees = np.zeros((len(rows), width, width), dtype=bool)
    sees[:, range(width), range(width)] = True
    read_at: dict[tuple[int, int], int] = {}
    wanted: list[tuple[int, list[int], Ids]] = []
    for r, row in enumerate(rows):
        offset = 0
        for block in row:
            end = offset + len(block.tree)
            ids[r, offset:end] = block.tree.tokens
            positions[r, offset:end] = np.asarray(block.tree.depths) + start
            sees[r, offset:end, offset:end] = block.tree.visible()
            for one in block.readings:
                places = [read_at.setdefault((r, offset + n), len(read_at)) for n in one.nodes]
                wanted.append((one.pair, places, one.targets))
            offset = end
    device = forward.device
    places = torch.tensor(list(read_at), device=device)
    tree = torch.from_numpy(sees).to(device)
    prefix = torch.ones((len(rows), width, start), dtype=torch.bool, device=device)
    where = torch.from_numpy(positions).to(device)
    before = torch.arange(start, device=device).expand(len(rows), start)
    cache.aim(slice(0, len(rows)), start, width)
    logits = forward(
        cache,
        torch.from_numpy(ids).to(device),
        positions=where,
        visible=torch.cat([prefix, tree], dim=2),
        slot_positions=torch.cat([before, where], dim=1),
        read=(places[:, 0], places[:, 1]),
    )
    return _read(logits, wanted)


def _read(
    logits: Float[Tensor, "read vocab"], wanted: list[tuple[int, list[int], Ids]]
) -> list[tuple[int, Likelihood]]:
    """Sum float32 log-probabilities of the targets, and compare them with the greedy tokens."""
    at = torch.tensor([p for _, places, _ in wanted for p in places], device=logits.device)
    targets = torch.tensor([t for _, _, ids in wanted for t in ids], device=logits.device)
    total = torch.cat([torch.logsumexp(part.float(), -1) for part in logits.split(_READ_ROWS)])
    best = logits.argmax(-1)
    logprobs = (logits[at, targets].float() - total[at]).double().cpu().numpy()
    greedy = (best[at] == targets).cpu().numpy()
    found, start = [], 0
    for pair, places, _ in wanted:
        end = start + len(places)
        found.append(
            (pair, Likelihood(float(logprobs[start:end].sum()), bool(greedy[start:end].all())))
        )
        start = end
    return found


def _plain(
    forward: Forward, pairs: Sequence[Pair], max_tokens: int
) -> Iterator[tuple[int, Likelihood]]:
    """One prompt per continuation, right-padded, for models whose state cannot branch."""
    by_input: dict[Ids, list[int]] = defaultdict(list)
    for i, pair in enumerate(pairs):
        if not pair.continuation:
            yield i, Likelihood(0.0, True)
        else:
            by_input[(pair.context + pair.continuation)[:-1]].append(i)
    waiting = sorted(by_input, key=len)
    while waiting:
        count = max(1, max_tokens // len(waiting[-1]))
        taken = [waiting.pop() for _ in range(min(count, len(waiting)))]
        try:
            found = _score_plain(forward, taken, by_input, pairs)
        except RuntimeError as error:
            max_tokens = _back_off(error, max_tokens, len(taken))
            waiting += reversed(taken)
            continue
        yield from found


def _score_plain(
    forward: Forward, inputs: list[Ids], by_input: dict[Ids, list[int]], pairs: Sequence[Pair]
) -> list[tuple[int, Likelihood]]:
    width = len(inputs[0])
    ids = torch.zeros((len(inputs), width), dtype=torch.long)
    mask = torch.zeros((len(inputs), width), dtype=torch.bool)
    read_at: dict[tuple[int, int], int] = {}
    wanted = []
    for r, own in enumerate(inputs):
        ids[r, : len(own)] = torch.tensor(own)
        mask[r, : len(own)] = True
        for i in by_input[own]:
            targets = pairs[i].continuation
            columns = range(len(own) - len(targets), len(own))
            places = [read_at.setdefault((r, c), len(read_at)) for c in columns]
            wanted.append((i, places, targets))
    places = torch.tensor(list(read_at), device=forward.device)
    logits = forward.plain(
        ids.to(forward.device), mask.to(forward.device), (places[:, 0], places[:, 1])
    )
    return _read(logits, wanted)


def _back_off(error: RuntimeError, max_tokens: int, num_taken: int) -> int:
    """Half the token budget after running out of memory; other errors are raised again."""
    if not is_out_of_memory(error):
        raise error
    if num_taken == 1:
        raise ResourceError(
            "out of memory while scoring a single item; use a smaller dtype, or a larger device"
        ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _log.warning("out of memory with %d tokens a batch, going on with half", max_tokens)
    return max_tokens // 2
