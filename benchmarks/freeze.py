"""What freezing one expert of a two-expert MoE costs and saves, per optimizer step.

    python benchmarks/freeze.py [--steps 15] [--threads 2]

Rows: everything trains; only the domain expert and its router row, by a masked gradient (the
optimizer holds whole parameters, and weight decay moves the frozen expert); the same guarded by
`moegraft.train.freeze`; the same through factors of rank 16. Times are medians of CPU time, which
other load on the machine hardly changes.
"""

import argparse
import statistics
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from moegraft.train.freeze import Trainable, freeze
from moegraft.train.lowrank import add_low_rank

SIZES = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 2,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERT = {"*.mlp.experts.*": (1,), "*.mlp.gate.weight": (1,)}
WAYS = ("all open", "masked", "guarded", "rank 16")


def prepare(way):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("flex_olmo", **SIZES)).train()
    model.set_experts_implementation("eager")
    opened = Trainable(rows=EXPERT)
    if way == "rank 16":
        rows = {n: (1,) for n, _ in model.named_parameters() if ".experts." in n}
        names = add_low_rank(model, rows, 16).names
        opened = Trainable(names, {"*.mlp.gate.weight": (1,)})
    frozen = None if way == "all open" else freeze(model, opened)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    if way in ("guarded", "rank 16"):
        frozen.guard(optimizer)
    return model, optimizer, frozen


def step(model, optimizer, ids):
    began = time.process_time()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    middle = time.process_time()
    optimizer.step()
    ended = time.process_time()
    optimizer.zero_grad()
    return middle - began, ended - middle


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    made = {way: prepare(way) for way in WAYS}
    times = {way: [] for way in WAYS}
    for number in range(arguments.steps + 2):
        ids = torch.randint(0, SIZES["vocab_size"], (2, 128))
        for way in WAYS:  # in turn, so that other load on the machine meets all alike
            found = step(*made[way][:2], ids)
            if number >= 2:
                times[way].append(found)
    print(
        "| what trains | forward and backward (ms) | optimizer (ms) | state (MB) | frozen moved |"
    )
    print("| --- | --- | --- | --- | --- |")
    for way in WAYS:
        _, optimizer, frozen = made[way]
        passes, steps = (
            1e3 * statistics.median(column) for column in zip(*times[way], strict=True)
        )
        state = sum(v.nbytes for s in optimizer.state.values() for v in s.values()) / 1e6
        print(f"| {way} | {passes:.0f} | {steps:.1f} | {state:.1f} | {moved(frozen)} |")


def moved(frozen):
    if frozen is None:
        return "-"
    try:
        frozen.check()
    except RuntimeError as error:
        return str(error).partition(":")[0]
    return "nothing"


if __name__ == "__main__":
    main()
