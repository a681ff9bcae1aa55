"""Which start helps? All arms of `moegraft xpert compare` from a small donor, to two targets.

    python benchmarks/xpert_starts.py DATA DONOR --out RUN      # DATA holds DOMAIN.jsonl files
    python benchmarks/xpert_starts.py DATA DONOR --out RUN --target narrow
    python benchmarks/xpert_starts.py DATA DONOR --out RUN --arms random,xpert,concat --steps 50

DONOR is what `benchmarks/xpert_donor.py` trained on DATA: its held-out documents validate here
too. Interrupted, the same command goes on. Writes RUN/TARGET/report.md and a figure.
"""

import argparse
import json
import platform
import subprocess
import time
from pathlib import Path

import torch

from moegraft.checkpoint import open_checkpoint
from moegraft.report.start_figures import write_start_figures
from moegraft.train.text import is_held_out
from moegraft.xpert.arms import ARMS
from moegraft.xpert.compare import Step, compare_starts
from moegraft.xpert.compare_recipe import PROTOCOLS, CompareRecipe, Training
from moegraft.xpert.compare_report import write_report
from moegraft.xpert.resize import CHOICES, Resizing

HELD_OUT = 0.1  # as benchmarks/xpert_donor.py


def targets(config: dict) -> dict[str, dict]:
    """Dense models (one expert that is always on) of other depth and width than the donor."""
    hidden, heads, layers = (
        config[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    dense = {"num_experts": 1, "num_experts_per_tok": 1}
    fewer = heads * 3 // 4
    return {
        "shallow": {**dense, "num_hidden_layers": layers // 2},
        "narrow": {
            **dense,
            "num_hidden_layers": layers + layers // 2,
            "hidden_size": hidden // heads * fewer,
            "num_attention_heads": fewer,
            "num_key_value_heads": fewer,
            "intermediate_size": 2 * config["intermediate_size"],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("donor")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target", choices=("shallow", "narrow"), default="shallow")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--protocols", default=",".join(PROTOCOLS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--top", type=int, default=4)
    parser.add_argument("--depth", choices=CHOICES["depth"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--keep-models", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    training, held = split(args.data, args.out)
    sizes = targets(dict(open_checkpoint(args.donor).config))[args.target]
    recipe = CompareRecipe(
        donor=args.donor,
        data=(str(training),),
        validation=(str(held),),
        target=sizes,
        arms=tuple(args.arms.split(",")),
        protocols=tuple(args.protocols.split(",")),
        num_seeds=args.seeds,
        top=args.top,
        resizing=Resizing(depth=args.depth or ("first" if args.target == "shallow" else "repeat")),
        training=Training(
            num_steps=args.steps,
            batch=args.batch,
            block=64,
            learning_rate=args.rate,
            warmup_steps=args.steps // 10,
            eval_every=max(1, args.steps // 10),
        ),
        max_tokens=200_000,
        profile_tokens=30_000,
        validation_blocks=32,
        keep_models=args.keep_models,
        device="cpu",
    )
    out = args.out / args.target
    began, cpu = time.perf_counter(), time.process_time()
    summary = compare_starts(recipe, out, on_step=tell)
    write_report(summary, out)
    write_start_figures(summary, out / "figures")
    print((out / "report.md").read_text())
    print(json.dumps(hardware(time.perf_counter() - began, time.process_time() - cpu)))


def split(data: Path, out: Path) -> tuple[Path, Path]:
    """Folders of the documents that the donor saw, and of those that it did not."""
    folders = out / "training", out / "held-out"
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(data.glob("*.jsonl")):
        lines = file.read_text(encoding="utf-8").strip("\n").split("\n")
        parts: tuple[list[str], list[str]] = ([], [])
        for line in lines:
            parts[is_held_out(json.loads(line)["text"], HELD_OUT)].append(line)
        for folder, part in zip(folders, parts, strict=True):
            (folder / file.name).write_text("".join(one + "\n" for one in part), encoding="utf-8")
    return folders


def tell(now: Step) -> None:
    if now.step == now.num_steps:
        print(f"{now.number} of {now.total}: {now.name}", flush=True)


def hardware(seconds: float, cpu_seconds: float) -> dict:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
        "seconds": round(seconds),
        "cpu_seconds": round(cpu_seconds),
    }


if __name__ == "__main__":
    main()
