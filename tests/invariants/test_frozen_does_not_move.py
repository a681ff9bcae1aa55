"""k optimizer steps move exactly the chosen tensors and expert slices; all else keeps its bits."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from frozen_moves import CHOSEN, FAMILIES, assert_only_chosen_moved, ids, small, state

from moegraft.errors import FrozenMovedError
from moegraft.train.freeze import freeze

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, weight_decay=0.1),
}


def _loss(model, step):
    batch = ids(step)
    return model(input_ids=batch, labels=batch, use_cache=False).loss


def _train(model, optimizer, steps):
    for step in steps:
        for part in (2 * step, 2 * step + 1):  # gradients of two batches accumulate
            _loss(model, part).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_loop_moves_what_was_chosen(family, name):
    model = small(family)
    before = state(model)
    frozen = freeze(model, CHOSEN)
    optimizer = OPTIMIZERS[name](model.parameters())
    frozen.guard(optimizer)
    _train(model, optimizer, range(4))
    frozen.check()
    assert_only_chosen_moved(before, state(model), frozen.opened)
    experts = model.model.layers[0].mlp.experts.gate_up_proj
    (kept,) = {v.shape[0] for v in optimizer.state[experts].values() if v.ndim}
    assert kept == 1  # of the frozen experts there is no optimizer state


def test_masking_gradients_alone_lets_weight_decay_move_frozen_experts():
    model = small("olmoe")
    frozen = freeze(model, CHOSEN)
    _train(model, OPTIMIZERS["adamw"](model.parameters()), range(1))
    with pytest.raises(
        FrozenMovedError, match=r"model.embed_tokens.weight\[0\]: is frozen, but its"
    ):
        frozen.check()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_trl_moves_what_was_chosen(tmp_path):
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from tiny_sweep import byte_tokenizer

    model = small("flex_olmo", vocab_size=258)
    before = state(model)
    frozen = freeze(model, CHOSEN)
    rows = [{"input_ids": row.tolist()} for step in range(4) for row in ids(step)]
    arguments = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(str(tmp_path), **arguments, **quiet, weight_decay=0.1, save_strategy="no"),
        train_dataset=Dataset.from_list(rows),
        processing_class=byte_tokenizer(),
    )
    frozen.guard(trainer.create_optimizer())
    trainer.train()
    frozen.check()
    assert_only_chosen_moved(before, state(model), frozen.opened)


SCRIPT = Path(__file__).with_name("frozen_in_two_processes.py")


def test_two_processes_move_what_was_chosen(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["ddp", "fully_shard"]
