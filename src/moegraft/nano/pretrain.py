"""Pretraining of the nano base models: a flat loop over packed documents, safe to kill."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from transformers import (
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from moegraft.nano import worlds

_log = logging.getLogger(__name__)
Stream = Callable[[Random, int], Iterator[str]]
"""Documents without end, a function of the generator and of the step."""


@dataclass(frozen=True, slots=True)
class PretrainRecipe:
    """How long and how fast the base model learns."""

    num_steps: int = 3600
    batch: int = 16
    """Packed sequences a step."""
    length: int = 256
    """Tokens of a packed sequence."""
    learning_rate: float = 4e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    save_every: int = 100
    story_weight: float = 0.1
    """Weight in the loss of what is told, against 1 for what answers."""
    answer_weight: float = 8.0
    """Least weight of an answer as a whole."""
    qk_gain: float = 2.0
    """First value of the query and key norms' weights: attention sharp enough to look up a word."""
    late_from_step: int = 1600
    """From this step on, text is mixed as `worlds.LATE_TEXT_MIX` says, and verdicts weigh more."""
    verdict_weight: float = 4.0
    """Weight of each yes and no, late in training."""
    seed: int = 0


def new_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, *, qk_gain: float = 1.0, **sizes: Any
) -> OlmoeForCausalLM:
    """A randomly initialised OLMoE of about 1.2 million parameters.

    Args:
        tokenizer: gives the vocabulary and the special tokens.
        seed: of the initial weights.
        qk_gain: first weight of the query and key norms.
        sizes: override its config.
    """
    config = {
        "hidden_size": 96,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": tokenizer.model_max_length,
        "initializer_range": 0.04,
        "router_aux_loss_coef": 0.01,
        **token_sizes(tokenizer),
    } | sizes
    torch.manual_seed(seed)
    model = OlmoeForCausalLM(OlmoeConfig(**config))
    model.set_experts_implementation("eager")
    sharpen(model, qk_gain)
    return model


def token_sizes(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What a config takes from the tokenizer: the vocabulary and the special tokens."""
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in special}}


def sharpen(model: torch.nn.Module, qk_gain: float) -> None:
    """Set the weights of the query and key norms, so that attention starts sharp."""
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.constant_(parameter, qk_gain)


class Batch(NamedTuple):
    """Documents that follow one another, each after an end-of-text token, cut to length."""

    ids: Int64[Tensor, "sequence token"]
    positions: Int64[Tensor, "sequence token"]
    """Counted from the start of each document: transformers then keeps documents apart."""
    weights: Float32[Tensor, "sequence token"]
    """Of each token in the loss."""


def packed_batch(
    tokenizer: PreTrainedTokenizerFast,
    recipe: PretrainRecipe,
    step: int,
    documents: Stream | None = None,
) -> Batch:
    """The data of one step: a function of the recipe's seed and of `step` alone.

    So a resumed run sees the same data. Without `documents` it is the text of the three worlds.
    """
    rng = Random(f"{recipe.seed} pretraining {step}")
    late = step >= recipe.late_from_step
    mix = worlds.LATE_TEXT_MIX if late else worlds.TEXT_MIX
    stream = documents(rng, step) if documents else worlds.documents(rng, mix)
    needed = recipe.batch * recipe.length
    answer = tokenizer.encode("Answer", add_special_tokens=False)[-1]
    verdicts = {tokenizer.encode(text, add_special_tokens=False)[-1] for text in (" yes", " no")}
    line_ends = {tokenizer.encode(text, add_special_tokens=False)[-1] for text in ("\n", "\n\n")}
    ids: list[int] = []
    positions: list[int] = []
    weights: list[float] = []
    while len(ids) < needed:
        for encoded in tokenizer(list(islice(stream, 16)))["input_ids"]:
            ids += [tokenizer.bos_token_id, *encoded]
            positions += range(len(encoded) + 1)
            weighed = _weights(encoded, answer, line_ends, recipe)
            if late:
                weighed = [
                    max(weight, recipe.verdict_weight) if token in verdicts else weight
                    for token, weight in zip(encoded, weighed, strict=True)
                ]
            weights += [recipe.story_weight, *weighed]
    columns = (torch.tensor(column[:needed]) for column in (ids, positions, weights))
    return Batch(*(column.view(recipe.batch, recipe.length) for column in columns))


def _weights(
    ids: list[int], answer: int, line_ends: set[int], recipe: PretrainRecipe
) -> list[float]:
    """Weight on the lines that answer and on documents without questions, else a little.

    What the passages tell is random, and its loss cannot fall; the gradient is spent on the rest.
    An answer of one word counts as much as `answer_weight` words of a worked solution.
    """
    if answer not in ids:
        return [1.0] * len(ids)
    weights = [recipe.story_weight] * len(ids)
    for start in (place + 2 for place, token in enumerate(ids) if token == answer):
        ends = (place for place in range(start, len(ids)) if ids[place] in line_ends)
        end = next(ends, len(ids))
        weight = max(1.0, recipe.answer_weight / max(1, end - start))
        weights[start:end] = [weight] * (end - start)
    return weights


def _loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Weighted mean of the next tokens' losses, and any routers' load-balancing loss."""
    routers = {"output_router_logits": True} if model.config.model_type == "olmoe" else {}
    output = model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False, **routers)
    losses = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
    )
    weight = batch.weights[:, 1:].flatten()
    loss = (losses * weight).sum() / weight.sum()
    return loss + model.config.router_aux_loss_coef * output.aux_loss if routers else loss


def _rate(recipe: PretrainRecipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to a twentieth."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.num_steps - recipe.warmup_steps)
    return recipe.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def _optimizer(model: PreTrainedModel, recipe: PretrainRecipe) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def _save_state(path: Path, state: dict[str, Any]) -> None:
    """Replace the resume file in one move, so that a kill leaves the old or the new one whole."""
    aside = path.with_suffix(".tmp")
    torch.save(state, aside)
    aside.replace(path)


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    recipe: PretrainRecipe,
    state_file: Path,
    documents: Stream | None = None,
) -> float:
    """Train `model` in place, resuming from `state_file` if it exists.

    Without `documents` the text is that of the three worlds.

    Returns:
        Seconds of training in all, those before an interruption included.
    """
    optimizer = _optimizer(model, recipe)
    first, seconds = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]
        _log.info("pretraining resumes at step %d", first)
    model.train()
    begin = time.perf_counter() - seconds
    for step in range(first, recipe.num_steps):
        batch = packed_batch(tokenizer, recipe, step, documents)
        for group in optimizer.param_groups:
            group["lr"] = _rate(recipe, step)
        loss = _loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - begin
        if step % 50 == 0:
            _log.info("pretraining step %d loss %.3f %.0f s", step, loss.item(), seconds)
        if (step + 1) % recipe.save_every == 0:
            _save_state(
                state_file,
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    "seconds": seconds,
                },
            )
    return seconds
