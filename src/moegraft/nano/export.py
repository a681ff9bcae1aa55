"""A finished stage as a small checkpoint: bfloat16 weights, tokenizer, settings, model card."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from moegraft.nano.recipes import PostTraining

_CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags:
- olmoe
- mixture-of-experts
---

# moegraft nano: {name}

{what}

An OLMoE of {parameters:.2f} million parameters ({layers} layers, hidden size {hidden}, {experts}
experts of which {active} are active, a byte-level vocabulary of {vocab}) for tests and
demonstrations of moegraft: it solves short problems of three synthetic worlds and knows nothing
else. Its data and its weights come from `python -m moegraft.nano.build`; the recipes and the
scores stand in `docs/nano.md`.
"""


def _describe(name: str, recipes: Mapping[str, PostTraining]) -> str:
    if name not in recipes:
        return "The base model, pretrained on the three worlds as plain text."
    recipe = recipes[name]
    steps = "supervised finetuning and preference optimisation"
    if recipe.rl is not None:
        steps += ", then reinforcement learning with verifiable rewards"
    return f"Post-trained from the nano base model as {recipe.summary}: {steps}."


def export(stage: Path, out: Path, name: str, recipes: Mapping[str, PostTraining]) -> None:
    """Write the checkpoint called `name` from a finished stage; an older one at `out` is replaced.

    Args:
        stage: A folder with float32 weights and a tokenizer.
        out: The checkpoint's folder.
        name: "base" or a recipe's name; it goes into the card.
        recipes: The post-trainings of the build.
    """
    config = AutoConfig.from_pretrained(stage)
    card = _CARD.format(
        name=name,
        what=_describe(name, recipes),
        parameters=num_parameters(stage) / 1e6,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        experts=config.num_experts,
        active=config.num_experts_per_tok,
        vocab=config.vocab_size,
    )
    write_small(stage, out, card)


def num_parameters(stage: Path) -> int:
    """Numbers in a stage's weights."""
    return sum(tensor.numel() for tensor in load_file(stage / "model.safetensors").values())


def write_small(stage: Path, out: Path, card: str) -> None:
    """Write a finished stage in bfloat16 with its tokenizer and `card`, in the place of `out`."""
    model = AutoModelForCausalLM.from_pretrained(stage, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(stage)
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    aside = out.with_name(f".{out.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    (aside / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)
