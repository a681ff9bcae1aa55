"""Batched generation: finished rows make room for waiting prompts, shared prefixes are computed once.

Plain `generate` runs a batch until its slowest row ends. Here each row is on its own: it stops at
its end-of-sequence token, stop string or budget, and its place goes to the next prompt at once.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moegraft.evals.condition import Decoding
from moegraft.evals.judge import Generation
from moegraft.evals.prefix import Ids, share_prefixes
from moegraft.evals.slots import Forward, SlotCache, load_prefix

Adjust = Callable[[Sequence[int], Sequence[int], Tensor], Tensor]
"""(positions of the prompts, tokens generated so far, logits) -> logits; for benchmarks."""

_LONGEST_LOOP = 64
_LOOP_TOKENS = 24
_SLOTS_AHEAD = 64


@dataclass(slots=True)
class Running:
    """One prompt being answered."""

    position: int
    prompt: Ids
    generator: torch.Generator | None
    """Of this prompt alone, so that samples do not depend on the batch; None = greedy."""
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    """By an end-of-sequence token or a stop string, not by the budget."""


class Stopper:
    """Tells when a row is done, looking at text only when a token could complete a stop string.

    Args:
        tokenizer: decodes tokens.
        eos_ids: any of these ends a row.
        stop: any of these strings ends a row.
    """

    def __init__(self, tokenizer: Any, eos_ids: Sequence[int], stop: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.eos_ids = frozenset(eos_ids)
        self.stop = tuple(s for s in stop if s)
        self._last = {s[-1] for s in self.stop}
        self._tail = max((len(s.encode()) for s in self.stop), default=0) + 1
        self._may_complete: dict[int, bool] = {}

    def is_done(self, tokens: Sequence[int]) -> bool:
        """Whether the last token ended the text."""
        if tokens[-1] in self.eos_ids:
            return True
        if not self.stop or not self._could_complete(tokens[-1]):
            return False
        tail = self.tokenizer.decode(list(tokens[-self._tail :]))
        return any(s in tail for s in self.stop)

    def text(self, tokens: Sequence[int]) -> str:
        """The text up to the first stop string, without special tokens."""
        kept = list(tokens[:-1]) if tokens and tokens[-1] in self.eos_ids else list(tokens)
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        for s in self.stop:
            text = text.split(s)[0]
        return text

    def _could_complete(self, token: int) -> bool:
        known = self._may_complete.get(token)
        if known is None:
            piece = self.tokenizer.decode([token])
            # A piece of a multi-byte character decodes to the replacement character.
            known = "\ufffd" in piece or any(last in piece for last in self._last)
            self._may_complete[token] = known
        return known


def is_loop(tokens: Sequence[int]) -> bool:
    """Whether a text ends in a repetition: a run of up to 64 tokens, three times or more.

    The repeated part must make up at least 24 tokens.
    """
    for period in range(1, min(_LONGEST_LOOP, len(tokens) // 3) + 1):
        length = max(_LOOP_TOKENS, 3 * period)
        if length <= len(tokens) and all(
            tokens[-k] == tokens[-k - period] for k in range(1, length - period + 1)
        ):
            return True
    return False


def generations(
    forward: Forward,
    stopper: Stopper,
    prompts: Sequence[Ids],
    decoding: Decoding,
    repeat: Sequence[int],
    *,
    max_rows: int,
    adjust: Adjust | None = None,
) -> Iterator[tuple[int, Generation]]:
    """Answer each prompt; yields (position, result) as rows finish.

    Greedy answers equal `model.generate`'s. Sampled ones depend on the seed, the prompt and its
    number in `repeat` alone.

    Args:
        forward: the model.
        stopper: when a row is done.
        prompts: token ids, each at least one token long.
        decoding: how to choose tokens.
        repeat: tells apart the samples of equal prompts.
        max_rows: rows in flight.
        adjust: changes the logits before a token is chosen.
    """
    room = max(1, forward.max_length - decoding.max_new_tokens)
    kept = [prompt[-room:] for prompt in prompts]
    rows = [
        Running(i, prompt, _generator(decoding, prompt, repeat[i]))
        for i, prompt in enumerate(kept)
    ]
    choose = _Chooser(decoding, adjust)
    if not forward.shares:
        from moegraft.evals.generate_plain import generate_plain

        yield from generate_plain(forward, stopper, rows, decoding, choose, max_rows)
        return
    cache = SlotCache(forward.num_layers)
    todo = [share_prefixes(kept)] if kept else []
    while todo:
        node = todo.pop()
        todo += node.children
        load_prefix(forward, cache, node.tokens, node.start, cache.num_rows or 1)
        waiting = sorted((rows[i] for i in node.members), key=lambda row: len(row.prompt))
        flight = _Flight(forward, cache, node.length, stopper, choose, decoding.max_new_tokens)
        yield from flight.run(waiting, max_rows)


class _Flight:
    """The rows that share one cached prefix, from first prompt to last answer."""

    def __init__(
        self,
        forward: Forward,
        cache: SlotCache,
        start: int,
        stopper: Stopper,
        choose: "_Chooser",
        budget: int,
    ) -> None:
        self.forward, self.cache, self.start = forward, cache, start
        self.stopper, self.choose, self.budget = stopper, choose, budget
        self.rows: list[Running] = []
        self.filled = cache.num_rows
        self.slots = torch.arange(0, device=forward.device)

    def run(self, waiting: list[Running], max_rows: int) -> Iterator[tuple[int, Generation]]:
        """Answer `waiting` (longest last), at most `max_rows` at a time."""
        if waiting:
            longest = len(waiting[-1].prompt) + min(self.budget, _SLOTS_AHEAD)
            self.cache.reserve(min(max_rows, len(waiting)), longest)
        refill = max(1, max_rows // 8)
        while waiting or self.rows:
            free = max_rows - len(self.rows)
            if waiting and (free >= refill or free >= len(waiting)):
                self._admit([waiting.pop() for _ in range(min(free, refill, len(waiting)))])
            else:
                self._step()
            yield from self._retire()

    def _admit(self, new: list[Running]) -> None:
        """Prefill new rows behind the others and choose their first tokens."""
        start, device = self.start, self.forward.device
        first, last = len(self.rows), len(self.rows) + len(new)
        tails = [row.prompt[start:] for row in new]
        width = max(len(tail) for tail in tails)
        ids = torch.zeros((len(new), width), dtype=torch.long)
        for r, tail in enumerate(tails):
            ids[r, : len(tail)] = torch.tensor(tail)
        self.cache.reserve(last, start + width + 1)
        if last > self.filled:
            self.cache.spread(0, start, last)
            self.filled = last
        self.cache.aim(slice(first, last), start, width)
        slots = self._slots(start + width)
        positions = slots[start:].expand(len(new), width)
        logits = self.forward(
            self.cache,
            ids.to(device),
            positions,
            slots[None, None, :] <= positions[:, :, None],
            slots.expand(len(new), -1),
            (
                torch.arange(len(new), device=device),
                torch.tensor([len(tail) - 1 for tail in tails], device=device),
            ),
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
            where[:, None],
            (slots[None, :] <= where[:, None])[:, None],
            slots.expand(len(lengths), -1),
            (rows, torch.zeros_like(rows)),
        )
        self._append(self.rows, logits)

    def _slots(self, count: int) -> Tensor:
        if len(self.slots) < count:
            self.slots = torch.arange(2 * count, device=self.forward.device)
        return self.slots[:count]

    def _append(self, rows: list[Running], logits: Tensor) -> None:
        for row, token in zip(rows, self.choose(rows, logits), strict=True):
            row.tokens.append(token)
            row.ended = self.stopper.is_done(row.tokens)

    def _retire(self) -> Iterator[tuple[int, Generation]]:
        """Hand over finished rows; the last row moves into each gap, so rows stay dense."""
        for r in range(len(self.rows) - 1, -1, -1):
            row = self.rows[r]
            if not row.ended and len(row.tokens) < self.budget:
                continue
            mover = self.rows.pop()
            if mover is not row:
                length = len(mover.prompt) + len(mover.tokens) - 1
                self.cache.move(len(self.rows), r, length)
                self.rows[r] = mover
            yield row.position, finish(row, self.stopper)


def finish(row: Running, stopper: Stopper) -> Generation:
    """The result of a row that is done."""
    return Generation(
        text=stopper.text(row.tokens),
        num_tokens=len(row.tokens),
        truncated=not row.ended,
        looped=is_loop(row.tokens),
    )


class _Chooser:
    """Chooses the next token of each row: the best one, or a sample from the row's own generator."""

    def __init__(self, decoding: Decoding, adjust: Adjust | None) -> None:
        self.decoding, self.adjust = decoding, adjust

    def __call__(self, rows: Sequence[Running], logits: Float[Tensor, "row vocab"]) -> list[int]:
        if self.adjust is not None:
            positions = [row.position for row in rows]
            logits = self.adjust(positions, [len(row.tokens) for row in rows], logits)
        if self.decoding.temperature == 0:
            return logits.argmax(-1).tolist()
        cumulative = self._probabilities(logits.float()).double().cumsum(-1)
        draws = torch.cat(
            [torch.rand(1, dtype=torch.float64, generator=row.generator) for row in rows]
        )
        points = draws.to(logits.device)[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, points, right=True)[:, 0]
        return chosen.clamp(max=logits.shape[-1] - 1).tolist()

    def _probabilities(self, logits: Tensor) -> Tensor:
        """Temperature, then top-k, then top-p, in the order of transformers."""
        logits = logits / self.decoding.temperature
        if self.decoding.top_k:
            least = logits.topk(min(self.decoding.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.decoding.top_p < 1:
            ranked, order = logits.sort(descending=True)
            shares = ranked.softmax(-1)
            beyond = shares.cumsum(-1) - shares >= self.decoding.top_p
            logits = logits.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)
        return logits.softmax(-1)


def _generator(decoding: Decoding, prompt: Ids, repeat: int) -> torch.Generator | None:
    if decoding.temperature == 0:
        return None
    key = repr((decoding.seed, prompt, repeat)).encode()
    seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(seed)
