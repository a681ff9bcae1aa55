"""Which token comes next, and when a text is done: stop strings, budgets, repetition loops."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moegraft.evals.condition import Decoding
from moegraft.evals.judge import Generation
from moegraft.evals.prefix import Ids

Adjust = Callable[[Sequence[int], Sequence[int], Tensor], Tensor]
"""(positions of the prompts, tokens generated so far, logits) -> logits; for benchmarks."""

_LONGEST_LOOP = 64
_LOOP_TOKENS = 24


@dataclass(slots=True)
class Running:
    """One prompt being answered."""

    position: int
    prompt: Ids
    repeat: int
    generator: torch.Generator | None
    """Of this prompt alone, so that samples do not depend on the batch; None = greedy."""
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    """By an end-of-sequence token or a stop string, not by the budget."""

    def restart(self, decoding: Decoding) -> None:
        """Forget what was generated; a second try draws the same samples."""
        self.tokens, self.ended = [], False
        self.generator = own_generator(decoding, self.prompt, self.repeat)


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


@dataclass(frozen=True, slots=True)
class Writer:
    """How tokens are chosen and when a row is done."""

    stopper: Stopper
    decoding: Decoding
    adjust: Adjust | None = None
    """Changes the logits before a token is chosen."""

    def choose(self, rows: Sequence[Running], logits: Float[Tensor, "row vocab"]) -> list[int]:
        """The next token of each row: the best one, or a sample from the row's own generator."""
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
            logits = logits.masked_fill(
                torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf
            )
        return logits.softmax(-1)


def finish(row: Running, stopper: Stopper) -> Generation:
    """The result of a row that is done."""
    return Generation(
        text=stopper.text(row.tokens),
        num_tokens=len(row.tokens),
        truncated=not row.ended,
        looped=is_loop(row.tokens),
    )


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


def own_generator(decoding: Decoding, prompt: Ids, repeat: int) -> torch.Generator | None:
    """A generator seeded by the seed, the prompt and the repeat; None for greedy decoding."""
    if decoding.temperature == 0:
        return None
    key = repr((decoding.seed, prompt, repeat)).encode()
    seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(seed)
