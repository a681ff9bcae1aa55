"""A dense OLMo 2 of a million parameters and its post-trained twin: where branches start.

`python -m moegraft.nano.dense --work DIR --out FOLDER` makes `dense-base` and `dense`; killed
anywhere, the same command resumes.
"""

import argparse
import logging
import shutil
import time
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
from moegraft.nano.export import num_parameters, write_small
from moegraft.train.chats import pack_chats
from moegraft.train.lm import train_lm
from moegraft.train.options import TrainOptions

RECIPE = pretrain.PretrainRecipe(num_steps=1600, batch=16, length=128, learning_rate=4e-3, seed=0)
ANNEAL = pretrain.PretrainRecipe(num_steps=900, batch=8, length=128, learning_rate=3e-3, seed=1)
"""A second stage, in smaller steps and with more text that has to be copied word by word."""
ANCHOR = TrainOptions(
    num_steps=300,
    batch=4,
    learning_rate=2e-3,
    betas=(0.9, 0.95),
    warmup_steps=15,
    seed=0,
    use_cpu=True,
)
NUM_ANCHOR_CHATS = 3000
_WHAT = {
    "dense-base": "Pretrained on passages, facts, lists and some arithmetic.",
    "dense": "dense-base after supervised finetuning on reading, science and everyday requests; "
    "word problems and programs were left out.",
}
_CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags:
- olmo2
---

# moegraft nano: {name}

{what}

An OLMo 2 of {parameters:.2f} million parameters with a byte-level vocabulary, from which branches
can be made (`moegraft bar branch`) in tests and demonstrations. Its data and its weights come from
`python -m moegraft.nano.dense`; `docs/bar.md` tells what it can do.
"""


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
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "initializer_range": 0.04,
        **pretrain.token_sizes(tokenizer),
    } | sizes
    torch.manual_seed(seed)
    model = Olmo2ForCausalLM(Olmo2Config(**config))
    pretrain.sharpen(model, qk_gain)
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


def post_train(base: Path, out: Path, options: TrainOptions = ANCHOR) -> None:
    """Finetune the base model on reading, science and everyday requests, and on nothing else."""
    model = Olmo2ForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    records = islice(domains.chats("general", Random("moegraft nano anchor")), NUM_ANCHOR_CHATS)
    blocks = pack_chats((record["messages"] for record in records), tokenizer, RECIPE.length)
    place = out.with_name(f"{out.name}-training")
    begin = time.perf_counter()
    train_lm(model, blocks, options, work=place)
    finish_stage(out, model, tokenizer, time.perf_counter() - begin)
    shutil.rmtree(place)


def export_pair(work: Path, out: Path) -> None:
    """Write both models as small checkpoints, `dense-base` and `dense`."""
    for name, what in _WHAT.items():
        stage = work / name
        size = num_parameters(stage) / 1e6
        write_small(stage, out / name, _CARD.format(name=name, what=what, parameters=size))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: `python -m moegraft.nano.dense`."""
    parser = argparse.ArgumentParser(prog="python -m moegraft.nano.dense", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/dense"), help="stages, to resume")
    parser.add_argument("--out", type=Path, default=Path("out/nano"), help="finished checkpoints")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    base, anchor = arguments.work / "dense-base", arguments.work / "dense"
    build(base)
    if not anchor.is_dir():
        post_train(base, anchor)
    export_pair(arguments.work, arguments.out)


if __name__ == "__main__":
    main()
