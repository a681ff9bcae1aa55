"""A dense OLMo 2 of a million parameters, its tokenizer and its pretraining: where branches start.

`python -m moegraft.nano.dense --out DIR` writes it; killed anywhere, the same command resumes.
"""

import argparse
import logging
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedTokenizerFast

from moegraft.nano import domains, pretrain, tool_world
from moegraft.nano import tokenizer as tokenizers
from moegraft.nano.build import finish_stage

RECIPE = pretrain.PretrainRecipe(num_steps=1600, batch=16, length=128, learning_rate=4e-3, seed=0)
ANNEAL = pretrain.PretrainRecipe(num_steps=900, batch=8, length=128, learning_rate=3e-3, seed=1)
"""A second stage, in smaller steps and with more text that has to be copied word by word."""


def corpus(num_documents: int = 600) -> Iterable[str]:
    """The text that the merges are learnt from: documents and chats of every domain."""
    rng = Random("moegraft nano dense tokenizer")
    yield from islice(domains.base_text(rng, 0), 4 * num_documents)
    for domain in domains.DOMAINS:
        texts = domains.documents(rng, domains.TEXT_MIX[domain])
        yield from map(_plain, islice(texts, num_documents))
        for record in islice(domains.chats(domain, rng), num_documents):
            user, assistant = record["messages"]
            yield f"<|user|>\n{user['content']}\n<|assistant|>\n{_plain(assistant['content'])}"


def _plain(text: str) -> str:
    """`text` without the special tokens that a domain adds later."""
    for token in tool_world.SPECIAL_TOKENS:
        text = text.replace(token, "")
    return text


def new_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, *, qk_gain: float = 1.0, **sizes: Any
) -> Olmo2ForCausalLM:
    """A randomly initialised OLMo 2 of 1.05 million parameters.

    Args:
        tokenizer: gives the vocabulary and the special tokens.
        seed: of the initial weights.
        qk_gain: first weight of the query and key norms.
        sizes: override its config.
    """
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "initializer_range": 0.04,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    } | sizes
    torch.manual_seed(seed)
    model = Olmo2ForCausalLM(Olmo2Config(**config))
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.constant_(parameter, qk_gain)
    return model


def build(
    out: Path,
    recipe: pretrain.PretrainRecipe = RECIPE,
    anneal: pretrain.PretrainRecipe = ANNEAL,
    **sizes: Any,
) -> None:
    """Pretrain the base model in two stages and write it to `out`; goes on where it was stopped.

    The first stage's model stays beside it, as `out` with `-first` behind.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    first = out.with_name(f"{out.name}-first")
    if not first.is_dir():
        tokenizer = tokenizers.train(corpus())
        model = new_model(tokenizer, recipe.seed, qk_gain=recipe.qk_gain, **sizes)
        _train(model, tokenizer, first, recipe, domains.base_text)
    if not out.is_dir():
        model = Olmo2ForCausalLM.from_pretrained(first, dtype=torch.float32)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(first)
        _train(model, tokenizer, out, anneal, domains.anneal_text)


def _train(model: Any, tokenizer: Any, out: Path, recipe: Any, text: pretrain.Stream) -> None:
    state = out.with_name(f"{out.name}-state.pt")
    seconds = pretrain.pretrain(model, tokenizer, recipe, state, text)
    finish_stage(out, model, tokenizer, seconds)
    state.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: `python -m moegraft.nano.dense`."""
    parser = argparse.ArgumentParser(prog="python -m moegraft.nano.dense", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the finished checkpoint")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    build(arguments.out)


if __name__ == "__main__":
    main()
