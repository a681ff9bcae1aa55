"""Branches that look trained: their own expert and router row moved, and what is named."""

import json
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moegraft.bar.branch import BranchRecipe, plan_branch, write_branch
from moegraft.bar.manifest import read_manifest, write_manifest
from moegraft.bar.merge import MergeRecipe, plan_merge, write_merge
from tiny_families import build_tiny, stored_tensors
from tiny_sweep import CHAT, byte_tokenizer


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Forty words, so that 24 rows of a vocabulary of 64 are padding."""
    words = {f"w{index}": index for index in range(40)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w2")


def build_branch_with_chats(folder: Path) -> Path:
    """An anchor, its untrained branch for math, and chats to train it on, in `folder`."""
    build_tiny("olmo2", vocab_size=258).save_pretrained(folder / "anchor")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "anchor")
    write_branch(plan_branch(BranchRecipe(str(folder / "anchor"), "math")), folder / "branch")
    lines = [json.dumps({"prompt": f"{n}?", "completion": str(n)}) for n in range(20)]
    (folder / "chat.jsonl").write_text("\n".join(lines))
    return folder


def train_branch(
    start: Path,
    out: Path,
    *,
    seed: int = 0,
    shared: tuple[str, ...] = (),
    experts: tuple[int, ...] = (1,),
    stages: tuple[dict, ...] = ({"stage": "sft", "tokens": 10},),
) -> Path:
    """Save the branch `start` to `out` with its experts, their rows and `shared` moved."""
    tensors = stored_tensors(start)
    source = torch.Generator().manual_seed(seed)

    def noise(tensor):
        return 0.1 * torch.randn(tensor.shape, generator=source)

    for name, tensor in tensors.items():
        if any(f".experts.{own}." in name for own in experts) or name in shared:
            tensor.add_(noise(tensor))
        elif name.endswith(".gate.weight"):
            for own in experts:
                tensor[own].add_(noise(tensor[own]))
    out.mkdir()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    for file in start.iterdir():
        if "token" in file.name or file.name == "config.json":
            (out / file.name).write_bytes(file.read_bytes())
    manifest = read_manifest(start)
    for stage in stages:
        manifest = manifest.with_stage(stage)
    write_manifest(out, manifest)
    return out


def card_of(folder: Path, bases: list[str], relation: str) -> ModelCard:
    """The model card in `folder`: metadata that the Hub takes, those bases, no local path."""
    card = ModelCard.load(folder / "README.md")
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    assert card.data.base_model == bases
    assert card.data.base_model_relation == relation
    assert card.data.library_name == "transformers"
    assert "moegraft" in card.data.tags
    for name in bases:
        validate_repo_id(name)
    assert str(folder.parent) not in str(card) and "/tmp" not in str(card)
    return card


def build_merged(root: Path) -> Path:
    """A merged model of an anchor that reads bytes, and two branches for `math` and `code`."""
    build_tiny("olmo2", vocab_size=258).save_pretrained(root / "anchor")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(root / "anchor")
    for seed, domain in enumerate(("math", "code")):
        recipe = BranchRecipe(str(root / "anchor"), domain)
        write_branch(plan_branch(recipe), root / f"{domain}-start")
        train_branch(root / f"{domain}-start", root / domain, seed=seed)
    branches = (str(root / "math"), str(root / "code"))
    plan = plan_merge(MergeRecipe(str(root / "anchor"), branches))
    write_merge(plan, root / "merged")
    return root / "merged"


def write_chats(root: Path) -> dict[str, str]:
    """Chats of two domains, 40 each: files by name."""
    for name, answer in (("math", str), ("code", lambda i: "x" * (i % 5 + 1))):
        records = [{"prompt": f"{name} {i}?", "completion": f"{answer(i)}."} for i in range(40)]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (root / f"{name}.jsonl").write_text(lines)
    return {name: str(root / f"{name}.jsonl") for name in ("math", "code")}
