"""A layer-by-layer scan with the layers below the first changed one reused, against full passes.

    python benchmarks/trunk.py [--layers 16] [--hidden 256] [--items 32] [--rounds 5]

Host and donor are random OLMoE models in float32. The scan scores fixed items teacher-forced (the
gold answer of each, or four choices each behind five shared examples) under the host, and then with
the experts of one layer swapped at a time, all layers in turn. Both sides go through the same
scorer, swaps included; on the side that reuses layers the host's pass records, and is checked.
The two sides alternate, and every log-probability must be equal bit by bit. Times are those of the
process on its cores (user and system), so that a busy machine does not blur them; run it with one
thread.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

import moegraft
from moegraft.evals.condition import Pair
from moegraft.evals.judge import Likelihood
from moegraft.evals.rescore import Rescorer
from moegraft.runtime import Host
from moegraft.sweep.design import DONOR
from moegraft.sweep.units import recipe_of
from moegraft.transfer.live import patches
from moegraft.transfer.plan import plan_transfer
from moegraft.transfer.scope import Slot

BAR = 1.6
VOCAB = 8192

Scan = Callable[[], list[dict[int, Likelihood]]]


def save_model(path: Path, seed: int, layers: int, hidden: int) -> str:
    torch.manual_seed(seed)
    config = OlmoeConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=hidden // 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        num_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=4096,
        pad_token_id=1,
        eos_token_id=0,
    )
    OlmoeForCausalLM(config).save_pretrained(path)
    return str(path)


def gold_requests(num_items: int, source: Random) -> list[Pair]:
    """Prompts of 60 to 100 tokens, answers of 40."""
    return [Pair(_ids(source, source.randint(60, 100)), _ids(source, 40)) for _ in range(num_items)]


def choice_requests(num_items: int, source: Random) -> list[Pair]:
    """Five shared examples, questions of 20 to 40 tokens, four choices of 5."""
    examples = _ids(source, 300)
    questions = [_ids(source, source.randint(20, 40)) for _ in range(num_items)]
    return [Pair(examples + one, _ids(source, 5)) for one in questions for _ in range(4)]


def _ids(source: Random, count: int) -> tuple[int, ...]:
    return tuple(source.randrange(2, VOCAB) for _ in range(count))


def scans(host: Host, pairs: list[Pair], max_bytes: int) -> tuple[Scan, Scan]:
    """The scan with full passes, and the one that reuses layers."""
    donor = host.donor_checkpoints[DONOR]
    plans = [
        plan_transfer(
            recipe_of(host.checkpoint.source, donor.source, [Slot("experts", layer, None)]),
            host.checkpoint,
            {DONOR: donor},
        )
        for layer in range(host.checkpoint.num_layers)
    ]

    def full() -> list[dict[int, Likelihood]]:
        scorer = Rescorer(host)
        found = [dict(scorer.likelihoods(pairs))]
        for plan in plans:
            with host.with_patches(patches(plan, host)):
                found.append(dict(scorer.likelihoods(pairs)))
        return found

    def reusing() -> list[dict[int, Likelihood]]:
        scorer = Rescorer(host, max_bytes=max_bytes)
        with scorer.recording():
            found = [dict(scorer.likelihoods(pairs))]
        for layer, plan in enumerate(plans):
            with host.with_patches(patches(plan, host)), scorer.starting_at(layer):
                found.append(dict(scorer.likelihoods(pairs)))
        assert scorer.reuses
        return found

    return full, reusing


def seconds(scan: Scan) -> tuple[float, list[dict[int, Likelihood]]]:
    start = time.process_time()
    found = scan()
    return time.process_time() - start, found


def compare(name: str, host: Host, pairs: list[Pair], rounds: int, max_bytes: int) -> str:
    """Time both sides in turn; a row of the table."""
    full, reusing = scans(host, pairs, max_bytes)
    times: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        one, expected = seconds(full)
        other, found = seconds(reusing)
        assert found == expected, "a log-probability differs"
        if number:  # the first round warms up
            times.append((one, other))
            print(f"{name}: {one:.2f} s full, {other:.2f} s reusing, {one / other:.2f} x")
    ratio = statistics.median(one / other for one, other in times)
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    return f"| {name} | {a:.2f} | {b:.2f} | {ratio:.2f} x | {'met' if ratio >= BAR else 'missed'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=1024, help="for hidden states")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = [
            save_model(Path(folder, str(seed)), seed, args.layers, args.hidden) for seed in (1, 2)
        ]
        host = Host.load(models[0], {DONOR: models[1]}, device="cpu", dtype="float32")
    size = sum(host.parameter(name).nbytes for name in host.parameter_names()) / 1e6
    sides = {
        "gold answers": gold_requests(args.items, Random(0)),
        "four choices, 5-shot": choice_requests(args.items, Random(0)),
    }
    rows = [
        compare(name, host, pairs, args.rounds, args.megabytes * 2**20)
        for name, pairs in sides.items()
    ]
    report = "\n".join(
        [
            "# A layer-by-layer scan that reuses lower layers",
            "",
            f"`python benchmarks/trunk.py --layers {args.layers} --hidden {args.hidden} "
            f"--items {args.items} --rounds {args.rounds}`: {args.layers} layers, {size:.0f} MB "
            f"in float32, {args.items} items, {torch.get_num_threads()} thread(s) of "
            f"{os.cpu_count()} {platform.machine()} cores, torch {torch.__version__}, moegraft "
            f"{moegraft.__version__}. Process time, median of {args.rounds} rounds in turn; the "
            "ratio is the median of each round's. All log-probabilities are equal bit by bit.",
            "",
            f"| requests | full passes, s | reusing, s | ratio | bar {BAR} x |",
            "| --- | ---: | ---: | ---: | --- |",
            *rows,
            "",
        ]
    )
    print(report)
    if args.out:
        args.out.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
