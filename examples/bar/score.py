"""Score checkpoints on the domains' test items with their own checkers: a row a checkpoint.

python examples/bar/score.py CHECKPOINT...
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moegraft.checkpoint import open_checkpoint
from moegraft.nano import domains
from moegraft.runtime.load import no_progress_bars

KINDS = {"science": 14, "code": 20, "safety": 16}
"""Kind of question: most tokens of an answer."""


@torch.no_grad()
def accuracy(model: Any, tokenizer: Any, kind: str, num_items: int = 100) -> float:
    """Percent of the items that the model's greedy answer solves."""
    items = domains.test_items(kind, num_items)
    ask = domains.KINDS[kind].prompt
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": ask(item)}], add_generation_prompt=True, tokenize=False
        )
        for item in items
    ]
    batch = tokenizer(
        chats,
        add_special_tokens=False,
        return_tensors="pt",
        return_token_type_ids=False,
        padding=True,
    )
    made = model.generate(**batch, max_new_tokens=KINDS[kind], do_sample=False)
    texts = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    check = domains.KINDS[kind].check
    return 100 * sum(check(i, t) for i, t in zip(items, texts, strict=True)) / num_items


def main() -> None:
    print(f"{'checkpoint':20}", *(f"{kind:>8}" for kind in KINDS))
    for name in sys.argv[1:]:
        folder = open_checkpoint(name).path
        with no_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        scores = [accuracy(model, tokenizer, kind) for kind in KINDS]
        label = "/".join(Path(name).parts[-2:])
        print(f"{label:20}", *(f"{score:8.0f}" for score in scores), flush=True)


if __name__ == "__main__":
    main()
