"""Where BAR's experiment keeps its stages, and how a model is scored: generation, then checkers."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moegraft.nano import domains
from moegraft.runtime.load import no_progress_bars

NUM_ITEMS = 200
ANSWER_TOKENS = {"reading": 16, "science": 14, "math": 44, "code": 20, "tool": 44, "safety": 16}
"""Kinds of question that are scored, and how long an answer may get."""


@dataclass(frozen=True, slots=True)
class Lab:
    """Where the experiment lives, and which of its seeds this is."""

    work: Path
    seed: int

    def at(self, name: str) -> Path:
        """The folder of a stage of this seed."""
        return self.work / f"seed{self.seed}" / name


def stage(folder: Path, make: Callable[[Path], None], *, keep: bool = False) -> Path:
    """Fill `folder` unless it is finished; what an interruption left is removed, or kept."""
    if not (folder / "DONE").exists():
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        begin = time.process_time()
        make(folder)
        folder.mkdir(exist_ok=True)
        seconds = time.process_time() - begin
        (folder / "DONE").write_text(f"{seconds:.0f}\n")
        print(f"{folder}: {seconds:.0f} s of one core", flush=True)
    return folder


def load(folder: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer."""
    with no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if hasattr(model.config, "num_experts"):
        model.set_experts_implementation("eager")
    return model, AutoTokenizer.from_pretrained(folder)


def answers(model: Any, tokenizer: Any, kind: str, items: Sequence[Any]) -> list[str]:
    """Greedy answers to questions of one kind."""
    ask = domains.KINDS[kind].prompt
    return texts_of(model, tokenizer, [ask(item) for item in items], ANSWER_TOKENS[kind])


@torch.no_grad()
def texts_of(model: Any, tokenizer: Any, prompts: Sequence[str], num_tokens: int) -> list[str]:
    """Greedy answers, token marks included, the end of text not."""
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        for prompt in prompts
    ]
    order = sorted(range(len(chats)), key=lambda i: len(chats[i]))
    found = [""] * len(chats)
    for first in range(0, len(order), 50):
        rows = order[first : first + 50]
        batch = tokenizer(
            [chats[i] for i in rows],
            add_special_tokens=False,
            return_tensors="pt",
            return_token_type_ids=False,
            padding=True,
        )
        made = model.generate(
            **batch,
            max_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        texts = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :])
        for i, text in zip(rows, texts, strict=True):
            found[i] = text.split(tokenizer.eos_token)[0]
    return found


def score(lab: Lab, row: str, folder: Path) -> dict[str, list[int]]:
    """Right and wrong by kind of question and item, kept in scores/ROW.json."""
    path = lab.at("scores") / f"{row}.json"
    if path.exists():
        return json.loads(path.read_text())
    model, tokenizer = load(folder)
    model.eval()
    begin = time.process_time()
    found = {}
    for kind in ANSWER_TOKENS:
        items = domains.test_items(kind, NUM_ITEMS)
        texts = answers(model, tokenizer, kind, items)
        check = domains.KINDS[kind].check
        found[kind] = [int(check(item, text)) for item, text in zip(items, texts, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found) + "\n")
    said = ", ".join(f"{kind} {100 * sum(s) / len(s):.0f}" for kind, s in found.items())
    print(f"seed {lab.seed} {row}: {said} ({time.process_time() - begin:.0f} s)", flush=True)
    return found
