"""Time the decomposition of all 48 expert stacks of OLMoE-1B-7B's real shapes, random weights.

    python benchmarks/tucker.py                         # all 16 layers
    python benchmarks/tucker.py --layers 1              # one, and what 16 would take
    python benchmarks/tucker.py --ranks half --sweeps 5 --device cuda
    python benchmarks/tucker.py --layers 1 --tensorly   # both on one stack

Weights are independent normal numbers: the hardest case for the energy that is kept, and as fast
or slow as any other.
"""

import argparse
import json
import os
import platform
import resource
import time

import torch

from moegraft.xpert.decompose import Decomposition, decompose_layer
from moegraft.xpert.experts import ExpertStack
from moegraft.xpert.ranks import parse_ranks
from moegraft.xpert.tucker import tucker

NUM_LAYERS, FFN, HIDDEN = 16, 1024, 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=NUM_LAYERS)
    parser.add_argument("--top", type=int, default=4)
    parser.add_argument("--ranks", default="published")
    parser.add_argument("--sweeps", type=int, default=2)
    parser.add_argument("--align", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tensorly", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    how = Decomposition(ranks=parse_ranks(args.ranks), num_sweeps=args.sweeps, align=args.align)
    seconds, cpu_seconds, last = [], [], {}
    for layer in range(args.layers):
        stack = random_experts(args.top, layer, args.device)
        began, cpu_began = time.perf_counter(), time.process_time()
        last = decompose_layer(stack, how)
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - cpu_began)
    print(json.dumps(report(args, seconds, cpu_seconds, last), indent=1))
    if args.tensorly:
        time_tensorly(random_experts(args.top, 0, "cpu"), how)


def random_experts(num: int, seed: int, device: str) -> ExpertStack:
    """Experts of OLMoE's shapes."""
    source = torch.Generator().manual_seed(seed)
    shapes = ((num, FFN, HIDDEN), (num, FFN, HIDDEN), (num, HIDDEN, FFN))
    drawn = (torch.randn(shape, generator=source).mul_(0.02).to(device) for shape in shapes)
    return ExpertStack(*drawn)


def report(args: argparse.Namespace, seconds: list, cpu_seconds: list, last: dict) -> dict:
    per_layer = sum(seconds) / len(seconds)
    return {
        "hardware": _hardware(args.device),
        "threads": args.threads,
        "torch": torch.__version__,
        "ranks": {name: one.diagnostics["ranks"] for name, one in last.items()},
        "sweeps": args.sweeps,
        "seconds_per_layer": [round(value, 2) for value in seconds],
        "cpu_seconds_per_layer": [round(value, 2) for value in cpu_seconds],
        "minutes_of_16_layers": round(per_layer * NUM_LAYERS / 60, 2),
        "is_extrapolated": len(seconds) < NUM_LAYERS,
        "retained_energy": {n: one.diagnostics["retained_energy"] for n, one in last.items()},
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _hardware(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {os.cpu_count()} cores"


def time_tensorly(stack: ExpertStack, how: Decomposition) -> None:
    """One gate stack by ours and by tensorly's tucker with the torch backend, as many sweeps."""
    import tensorly
    from tensorly.decomposition import tucker as theirs

    gate = stack.gate.permute(1, 2, 0).contiguous()
    ranks = how.ranks.resolve("gate", tuple(gate.shape), "benchmark")
    sweeps = max(1, how.num_sweeps)

    def by_tensorly() -> torch.Tensor:
        with tensorly.backend_context("pytorch"):
            return theirs(gate, list(ranks), n_iter_max=sweeps)[0]

    for name, decompose in (
        ("ours", lambda: tucker(stack.gate, ranks, num_sweeps=sweeps).core),
        ("tensorly", by_tensorly),
    ):
        began, cpu_began = time.perf_counter(), time.process_time()
        core = decompose()
        took, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        kept = float(core.square().sum() / gate.square().sum())
        print(f"{name}, gate alone: {took:.1f} s, {cpu:.1f} s of CPU, keeps {kept:.4f}")


if __name__ == "__main__":
    main()
