"""Our lm-eval `LM` on a model that changes in place: shared prefixes, rows that come and go.

Two ways to use it. `judge.score_items(scorer, condition, items)` yields item rows and feeds token
ids that were made once. `lm_eval.simple_evaluate(model=Scorer(host), ...)` runs any lm-eval task
as it is. Nothing is kept from one call to the next, so swapping components between calls is safe;
lm-eval's response cache is not keyed by model and is never used.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from moegraft.evals.condition import Decoding, Pair
from moegraft.evals.generate import generations
from moegraft.evals.generate_paged import generate_paged
from moegraft.evals.judge import Generation, Likelihood
from moegraft.evals.likelihood import likelihoods
from moegraft.evals.sampling import Adjust, Stopper, Writer
from moegraft.evals.slots import Forward
from moegraft.evals.tokens import encode, encode_pairs, prefix_id

_log = logging.getLogger(__name__)
_DEFAULT_MAX_GEN_TOKS = 256


class Scorer(TemplateLM):
    """Scores requests on a host, or on a plain transformers model and its tokenizer.

    Args:
        host: a `runtime.Host`, or a causal language model of transformers.
        tokenizer: needed for a plain model.
        eos_ids: tokens that end a generation; default: the host's (the union over its
            checkpoints), or those of the model's generation config and the tokenizer.
        max_tokens: tokens of one forward pass; halved when memory runs out.
        max_rows: generations in flight.
        paged: on a GPU, generate greedily with transformers' continuous batching.
        patches: called before each lm-eval request list; the patches are applied while it runs.
        chat_template_kwargs: passed to the chat template.
        seed: for sampled generations.
    """

    def __init__(
        self,
        host: Any,
        tokenizer: Any = None,
        *,
        eos_ids: Sequence[int] | None = None,
        max_tokens: int | None = None,
        max_rows: int | None = None,
        paged: bool = False,
        patches: Callable[[], Sequence[Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        is_host = hasattr(host, "with_patches")
        self.host = host if is_host else None
        self.model: Any = host.model if is_host else host
        self.tokenizer: Any = host.tokenizer if is_host and tokenizer is None else tokenizer
        assert self.tokenizer is not None, "a plain model needs its tokenizer"
        assert patches is None or is_host, "patches need a host"
        self.patches = patches
        self.model.eval()
        self._device = self.model.device
        own = host.eos_ids if is_host and eos_ids is None else eos_ids
        self.eos_ids = sorted(set(own if own is not None else _eos_ids(self.model, self.tokenizer)))
        on_gpu = self._device.type == "cuda"
        self.max_tokens = max_tokens or (16384 if on_gpu else 4096)
        self.max_rows = max_rows or 256
        self.paged = paged
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.seed = seed
        self.adjust: Adjust | None = None
        """Changes logits before a token is chosen; benchmarks use it to fix lengths."""
        self._said_plain = False

    # --- what score_items calls -----------------------------------------------------------

    def likelihoods(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Likelihood]]:
        """Log-likelihood of each pair's continuation; (position, result) in any order."""
        return likelihoods(self._forward(), pairs, self.max_tokens)

    def generations(
        self,
        prompts: Sequence[tuple[int, ...]],
        decoding: Decoding,
        repeat: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Generation]]:
        """Answer each prompt; (position, result) as they finish."""
        forward = self._forward()
        writer = Writer(Stopper(self.tokenizer, self.eos_ids, decoding.stop), decoding, self.adjust)
        if self.paged and decoding.temperature == 0 and self.adjust is None:
            return generate_paged(forward, writer, prompts)
        return generations(
            forward,
            writer,
            prompts,
            [0] * len(prompts) if repeat is None else repeat,
            max_rows=self.max_rows,
            max_tokens=self.max_tokens,
        )

    def _forward(self) -> Forward:
        forward = Forward(self.model)
        if self.host is not None and not self.host.checkpoint.family.branching_cache:
            forward.shares = False
        if not forward.shares and not self._said_plain:
            self._said_plain = True
            _log.warning(
                "%s keeps a state that cannot branch: one prompt per choice, no shared prefixes",
                self.model.config.model_type,
            )
        return forward

    # --- lm-eval's interface --------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's end-of-sequence token."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before an empty context."""
        return prefix_id(self.tokenizer)

    @property
    def max_length(self) -> int:
        """Longest sequence that the model can see."""
        return Forward(self.model).max_length

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's output."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids of one text."""
        if add_special_tokens is None:
            return list(encode(self.tokenizer, [string])[0])
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render messages as the tokenizer's template says."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self.chat_template_kwargs,
        )

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of (context, continuation) texts, in the order asked."""
        texts = [_two(request) for request in requests]
        return self._answer_pairs(encode_pairs(self.tokenizer, texts))

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self._answer_pairs([Pair(tuple(c), tuple(r)) for _, c, r in requests])

    def _answer_pairs(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        with self._patched():
            found = dict(self.likelihoods(pairs))
        return [(found[i].logprob, found[i].is_greedy) for i in range(len(pairs))]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts, in windows of the model's length."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        pairs, owners = [], []
        for i, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, rest in map(make_disjoint_window, windows):
                pairs.append(Pair(tuple(context), tuple(rest)))
                owners.append(i)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._answer_pairs(pairs), strict=True):
            totals[owner] += logprob
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate a text per request, in the order asked."""
        prompts = encode(self.tokenizer, [request.args[0] for request in requests])
        settings = [self._decoding(_two(request)[1]) for request in requests]
        seen: Counter[tuple[Any, ...]] = Counter()
        repeat = []
        for key in zip(prompts, settings, strict=True):
            repeat.append(seen[key])
            seen[key] += 1
        texts = [""] * len(requests)
        with self._patched():
            for decoding in dict.fromkeys(settings):
                own = [i for i, other in enumerate(settings) if other == decoding]
                answers = self.generations(
                    [prompts[i] for i in own], decoding, [repeat[i] for i in own]
                )
                for k, answer in answers:
                    texts[own[k]] = answer.text
        return texts

    def _decoding(self, given: dict[str, Any]) -> Decoding:
        from lm_eval.models.utils import normalize_gen_kwargs

        kwargs: dict[str, Any] = {**normalize_gen_kwargs(given, _DEFAULT_MAX_GEN_TOKS)}
        until = kwargs.get("until") or []
        sampled = kwargs.get("do_sample")
        return Decoding(
            max_new_tokens=int(kwargs["max_gen_toks"]),
            stop=tuple([until] if isinstance(until, str) else until),
            temperature=float(kwargs.get("temperature") or 1.0) if sampled else 0.0,
            top_p=float(kwargs.get("top_p") or 1.0),
            top_k=int(kwargs.get("top_k") or 0),
            seed=self.seed,
        )

    def _patched(self) -> AbstractContextManager[Any]:
        if self.patches is None or self.host is None:
            return nullcontext()
        return self.host.with_patches(self.patches())


def _two(request: Instance) -> tuple[Any, Any]:
    given: Any = request.args
    return given[0], given[1]


def _eos_ids(model: Any, tokenizer: Any) -> set[int]:
    found = {tokenizer.eos_token_id}
    for config in (getattr(model, "generation_config", None), model.config):
        ids = getattr(config, "eos_token_id", None)
        found |= {ids} if isinstance(ids, int) else set(ids or ())
    return {i for i in found if i is not None}
