"""Batched generation: a finished row gives its place to the next prompt, prefixes are shared.

Plain `generate` runs a batch until its slowest row ends. Here each row is on its own: it stops at
its end-of-sequence token, stop string or budget, and its place goes to the next prompt at once.
"""

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from moegraft.errors import ResourceError
from moegraft.evals.generate_plain import generate_plain
from moegraft.evals.judge import Generation
from moegraft.evals.prefix import Ids, share_prefixes
from moegraft.evals.sampling import Running, Writer, finish, own_generator
from moegraft.evals.slots import Forward, SlotCache, is_out_of_memory, load_prefix

_log = logging.getLogger(__name__)
_SLOTS_AHEAD = 64
_PACKED_ON_CPU = 1024
"""Tokens of prompts that run as one sequence: more would spend the CPU on masked attention."""


def generations(
    forward: Forward,
    writer: Writer,
    prompts: Sequence[Ids],
    repeat: Sequence[int],
    *,
    max_rows: int,
    max_tokens: int,
) -> Iterator[tuple[int, Generation]]:
    """Answer each prompt; yields (position, result) as rows finish.

    Greedy answers equal `model.generate`'s. Sampled ones depend on the seed, the prompt and its
    number in `repeat` alone.

    Args:
        forward: the model.
        writer: how tokens are chosen and when a row is done.
        prompts: token ids, each at least one token long; cut from the left to what fits.
        repeat: tells apart the samples of equal prompts.
        max_rows: rows in flight.
        max_tokens: tokens of one forward pass over prompts.

    Raises:
        ResourceError: a single row does not fit into memory.
    """
    room = max(1, forward.max_length - writer.decoding.max_new_tokens)
    kept = [prompt[-room:] for prompt in prompts]
    rows = [
        Running(i, prompt, repeat[i], own_generator(writer.decoding, prompt, repeat[i]))
        for i, prompt in enumerate(kept)
    ]
    if not forward.shares:
        yield from generate_plain(forward, writer, rows, max_rows)
        return
    todo = [share_prefixes(kept)] if kept else []
    while todo:
        node = todo.pop()
        todo += node.children
        left = {i: rows[i] for i in node.members}
        yield from _answer(forward, writer, left, node.length, (max_rows, max_tokens))


def _answer(
    forward: Forward, writer: Writer, left: dict[int, Running], start: int, limits: tuple[int, int]
) -> Iterator[tuple[int, Generation]]:
    """Answer prompts that share their first `start` tokens, fewer at a time when memory ends."""
    max_rows, max_tokens = limits
    while left:
        waiting = sorted(left.values(), key=lambda row: len(row.prompt))
        slots = len(waiting[-1].prompt) + writer.decoding.max_new_tokens
        max_rows = min(max_rows, max(1, forward.cache_bytes() // forward.slot_bytes // slots))
        try:
            flight = _Flight(forward, writer, waiting[0].prompt[:start])
            for position, answer in flight.run(waiting, max_rows, max_tokens):
                del left[position]
                yield position, answer
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if max_rows == 1:
                raise ResourceError("out of memory while generating a single text") from error
            max_rows, max_tokens = max_rows // 2, max(1, max_tokens // 2)
            _log.warning("out of memory, going on with %d texts at a time", max_rows)
            for row in left.values():
                row.restart(writer.decoding)


class _Flight:
    """The rows that share one cached prefix, from first prompt to last answer."""

    def __init__(self, forward: Forward, writer: Writer, prefix: Ids) -> None:
        self.forward, self.writer = forward, writer
        self.start = len(prefix)
        self.rows: list[Running] = []
        self.cache = SlotCache(forward.num_layers)
        load_prefix(forward, self.cache, prefix, 0, 1)
        self.filled = 1
        self.slots = torch.arange(0, device=forward.device)

    def run(
        self, waiting: list[Running], max_rows: int, max_tokens: int
    ) -> Iterator[tuple[int, Generation]]:
        """Answer `waiting` (longest last), at most `max_rows` at a time."""
        if waiting:
            longest = len(waiting[-1].prompt) + min(self._budget, _SLOTS_AHEAD)
            self.cache.reserve(min(max_rows, len(waiting)), longest)
        refill = max(1, max_rows // 8)
        while waiting or self.rows:
            free = max_rows - len(self.rows)
            if waiting and (free >= refill or free >= len(waiting)):
                self._admit(self._pack(waiting, free, max_tokens))
            else:
                self._step()
            yield from self._retire()

    @property
    def _budget(self) -> int:
        return self.writer.decoding.max_new_tokens

    def _pack(self, waiting: list[Running], max_rows: int, max_tokens: int) -> list[Running]:
        """Take rows from the end of `waiting`: one at least, more while they fit into one pass."""
        room = max_tokens if self.forward.device.type == "cuda" else min(max_tokens, _PACKED_ON_CPU)
        taken = [waiting.pop()]
        room -= len(taken[0].prompt) - self.start
        while waiting and len(taken) < max_rows:
            room -= len(waiting[-1].prompt) - self.start
            if room < 0:
                break
            taken.append(waiting.pop())
        return taken

    def _admit(self, new: list[Running]) -> None:
        """Prefill new rows behind the others, packed into one sequence; choose first tokens."""
        start, device = self.start, self.forward.device
        first, last = len(self.rows), len(self.rows) + len(new)
        lengths = [len(row.prompt) - start for row in new]
        self.cache.reserve(last, start + max(lengths) + 1)
        if last > self.filled:
            self.cache.spread(0, start, self.cache.num_rows)
            self.filled = self.cache.num_rows
        ids = torch.tensor([[token for row in new for token in row.prompt[start:]]], device=device)
        sizes = torch.tensor(lengths, device=device)
        owner = torch.arange(len(new), device=device).repeat_interleave(sizes)
        ends = sizes.cumsum(0)
        places = start + torch.arange(ids.shape[1], device=device) - (ends - sizes)[owner]
        self.cache.aim_packed(first + owner, places, start)
        own = (owner[:, None] == owner) & (places[:, None] >= places)
        before = own.new_ones(len(own), start)
        logits = self.forward(
            self.cache,
            ids,
            positions=places[None],
            visible=torch.cat([before, own], dim=1)[None],
            slot_positions=torch.cat([self._slots(start), places])[None],
            read=(torch.zeros_like(ends), ends - 1),
        )
        self.rows += new
        self._append(new, logits)

    def _step(self) -> None:
        """One more token for every row."""
        device = self.forward.device
        lengths = [len(row.prompt) + len(row.tokens) - 1 for row in self.rows]
        end = max(lengths) + 1
        where = torch.tensor(lengths, device=device)
        slots = self._slots(end)
        self.cache.aim_each(where, end)
        rows = torch.arange(len(lengths), device=device)
        logits = self.forward(
            self.cache,
            torch.tensor([[row.tokens[-1]] for row in self.rows], device=device),
            positions=where[:, None],
            visible=(slots[None, :] <= where[:, None])[:, None],
            slot_positions=slots.expand(len(lengths), -1),
            read=(rows, torch.zeros_like(rows)),
        )
        self._append(self.rows, logits)

    def _slots(self, count: int) -> Tensor:
        if len(self.slots) < count:
            self.slots = torch.arange(2 * count, device=self.forward.device)
        return self.slots[:count]

    def _append(self, rows: list[Running], logits: Tensor) -> None:
        for row, token in zip(rows, self.writer.choose(rows, logits), strict=True):
            row.tokens.append(token)
            row.ended = self.writer.stopper.is_done(row.tokens)

    def _retire(self) -> Iterator[tuple[int, Generation]]:
        """Hand over finished rows; the last row moves into each gap, so rows stay dense."""
        for r in range(len(self.rows) - 1, -1, -1):
            row = self.rows[r]
            if not row.ended and len(row.tokens) < self._budget:
                continue
            mover = self.rows.pop()
            if mover is not row:
                length = len(mover.prompt) + len(mover.tokens) - 1
                self.cache.move(len(self.rows), r, length)
                self.rows[r] = mover
            yield row.position, finish(row, self.writer.stopper)
