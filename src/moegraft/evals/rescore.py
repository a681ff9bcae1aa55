"""Score the same requests again and again while layers are swapped, computing only what changed."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from moegraft.evals.condition import Decoding, Pair
from moegraft.evals.judge import Generation, Likelihood
from moegraft.evals.likelihood import likelihoods
from moegraft.evals.scorer import Scorer
from moegraft.evals.slots import Forward
from moegraft.runtime.trunk import MAX_BYTES, Trunk, TrunkMismatchError, plain_layers

_log = logging.getLogger(__name__)


class Rescorer:
    """Answers, as `judge.score_items` asks for them, that reuse the layers below the first change.

    First score under `recording()`, with a configuration to start from swapped in or not; then,
    with other configurations swapped in, under `starting_at(layer)`. Requests that were not
    recorded, generations, and models that are no plain stack of layers are computed in full:
    results never depend on what is reused, bit by bit.

    Args:
        host: a `runtime.Host`.
        max_tokens: tokens of one forward pass; the same for all passes, so that they can be
            reused.
        max_bytes: memory for hidden states.
        seed: for sampled generations.
    """

    def __init__(
        self,
        host: Any,
        *,
        max_tokens: int | None = None,
        max_bytes: int = MAX_BYTES,
        seed: int = 0,
    ) -> None:
        self.host = host
        self.max_tokens = max_tokens or (16384 if host.device.type == "cuda" else 4096)
        self._seed, self._max_bytes = seed, max_bytes
        self._layers = plain_layers(host.model, host.checkpoint.family)
        self._trunks: dict[tuple[Pair, ...], Trunk] = {}
        self._recording, self._layer = False, 0
        if not self._layers:
            self._give_up(f"{host.model.config.model_type} is no plain stack of layers")

    @property
    def num_layers(self) -> int:
        """Of the model; what `starting_at` takes where only the final norm or head differs."""
        return Forward(self.host.model).num_layers

    @property
    def reuses(self) -> bool:
        """Whether anything is reused at all."""
        return bool(self._layers)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within this block requests are computed in full and remembered, older ones forgotten."""
        self._trunks, self._recording = {}, True
        try:
            yield
        finally:
            self._recording = False

    @contextmanager
    def starting_at(self, layer: int) -> Iterator[None]:
        """Within this block nothing below `layer` differs from what was swapped in at recording."""
        self._layer = layer
        try:
            yield
        finally:
            self._layer = 0

    def likelihoods(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Likelihood]]:
        """Log-likelihood of each pair's continuation; (position, result) in any order."""
        key = tuple(pairs)
        if self._recording and self._layers:
            yield from self._record(key)
        elif self._layer and key in self._trunks:
            yield from self._again(key)
        else:
            yield from self._computed(key)

    def generations(
        self,
        prompts: Sequence[tuple[int, ...]],
        decoding: Decoding,
        repeat: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Generation]]:
        """Answer each prompt, in full; (position, result) as they finish."""
        scorer = Scorer(self.host, max_tokens=self.max_tokens, seed=self._seed)
        return scorer.generations(prompts, decoding, repeat)

    def _computed(self, pairs: tuple[Pair, ...]) -> list[tuple[int, Likelihood]]:
        forward = Forward(self.host.model)
        if not self.host.checkpoint.family.branching_cache:
            forward.shares = False
        return list(likelihoods(forward, pairs, self.max_tokens))

    def _record(self, pairs: tuple[Pair, ...]) -> list[tuple[int, Likelihood]]:
        """Compute and remember, then see that the last layer alone gives the same numbers."""
        left = self._max_bytes - sum(trunk.nbytes for trunk in self._trunks.values())
        trunk = Trunk(self._layers, self.host.model.get_input_embeddings(), max_bytes=max(0, left))
        try:
            with trunk.recording():
                found = self._computed(pairs)
            with trunk.starting_at(len(self._layers) - 1):
                same = self._computed(pairs) == found
        except TrunkMismatchError as reason:
            self._give_up(str(reason))
            return self._computed(pairs)
        if not same:
            self._give_up("layers depend on more than the hidden states")
        elif not trunk.starts:
            _log.info("memory for hidden states is too small to reuse any: computing in full")
        else:
            self._trunks[pairs] = trunk
        return found

    def _again(self, pairs: tuple[Pair, ...]) -> list[tuple[int, Likelihood]]:
        try:
            with self._trunks[pairs].starting_at(self._layer):
                return self._computed(pairs)
        except TrunkMismatchError as reason:  # memory ran out, and batches became smaller
            del self._trunks[pairs]
            _log.info("computing in full: %s", reason)
            return self._computed(pairs)

    def _give_up(self, reason: str) -> None:
        _log.info("computing every layer for every configuration: %s", reason)
        self._layers, self._trunks = [], {}
