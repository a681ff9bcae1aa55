"""Time `moegraft transfer` beside `cp -r`, and beside mergekit, on OLMoE-1B-7B's real shapes.

    python benchmarks/compose.py --dir SCRATCH --sizes 2gb full --many
    python benchmarks/compose.py --dir SCRATCH --sizes 2gb --mergekit VENV/bin/python
    python benchmarks/compose.py --dir SCRATCH --sizes tiny --reflink XFS_OR_BTRFS_MOUNT

Each side is a process of its own: interpreter start-up, planning, writing and fsync are all inside
the time. `cp -r` is followed by fsync of every file and folder it made. Sides alternate, outputs
are deleted and the disk is synced between, and the ratio is the median over the pairs. Needs four
times the size on disk. Writes benchmarks/compose_<hardware>_<yyyymm>.md.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from make_checkpoint import SIZES

HERE = Path(__file__).parent
COMPONENTS = "router,experts"

CP = "import os, subprocess, sys\n" + (
    "subprocess.run(['cp', '-r', sys.argv[1], sys.argv[2]], check=True)\n"
    "for root, _, names in os.walk(sys.argv[2]):\n"
    "    for path in (*(os.path.join(root, n) for n in names), root):\n"
    "        fd = os.open(path, os.O_RDONLY); os.fsync(fd); os.close(fd)\n"
)

MERGE = """
merge_method: linear
models:
  - model: {host}
    parameters:
      weight:
        - {{filter: mlp.experts, value: 0.0}}
        - {{filter: mlp.gate., value: 0.0}}
        - value: 1.0
  - model: {donor}
    parameters:
      weight:
        - {{filter: mlp.experts, value: 1.0}}
        - {{filter: mlp.gate., value: 1.0}}
        - value: 0.0
parameters: {{normalize: false}}
dtype: bfloat16
"""

LOGITS = """
import sys, torch
from transformers import AutoModelForCausalLM
ids = torch.arange(2, 66)[None]
found = []
for path in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(path, experts_implementation="eager").eval()
    with torch.no_grad():
        found.append(model(ids).logits)
    del model
print(torch.equal(*found))
"""


class Cost(NamedTuple):
    """What one process took."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measure(command: Sequence[str | Path]) -> Cost:
    """Run `command` to its end; wall time, CPU time and peak memory of that process."""
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr
    told = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command}: {told.decode()}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def transfer_command(host: Path, donor: Path, out: Path) -> list[str | Path]:
    """The command under test."""
    flags = ["--host", host, "--donor", donor, "--components", COMPONENTS, "--out", out]
    return [sys.executable, "-m", "moegraft", "transfer", *flags]


def compare_with_cp(host: Path, donor: Path, pairs: int) -> dict:
    """Alternate `cp -r` and the transfer `pairs` times."""
    out = host.parent / "out"
    sides: dict[str, list[Cost]] = {"cp": [], "moegraft": []}
    commands = {
        "cp": [sys.executable, "-c", CP, host, out],
        "moegraft": transfer_command(host, donor, out),
    }
    for turn in range(pairs):
        order = ("cp", "moegraft") if turn % 2 == 0 else ("moegraft", "cp")
        for side in order:
            sides[side].append(measure(commands[side]))
            shutil.rmtree(out)
        print({side: round(costs[-1].seconds, 2) for side, costs in sides.items()}, flush=True)
    times = {side: [cost.seconds for cost in costs] for side, costs in sides.items()}
    ratios = [ours / cp for ours, cp in zip(times["moegraft"], times["cp"], strict=True)]
    return {
        "cp": statistics.median(times["cp"]),
        "moegraft": statistics.median(times["moegraft"]),
        "fastest_cp": min(times["cp"]),
        "fastest": min(times["moegraft"]),
        "ratio": statistics.median(ratios),
        "ratios": sorted(ratios),
        "cpu": statistics.median(cost.cpu_seconds for cost in sides["moegraft"]),
        "peak": max(cost.peak_bytes for cost in sides["moegraft"]),
    }


def compare_with_mergekit(host: Path, donor: Path, python: Path) -> dict:
    """One merge with mergekit, one transfer, and whether both load to the same logits."""
    theirs, ours = host.parent / "merged", host.parent / "composed"
    config = host.parent / "merge.yaml"
    config.write_text(MERGE.format(host=host, donor=donor))
    command = [python.parent / "mergekit-yaml", config, theirs, "--out-shard-size", "5B"]
    merged = measure(command)
    composed = measure(transfer_command(host, donor, ours))
    same = None
    if host.stat().st_size and sum(f.stat().st_size for f in host.iterdir()) < 5e9:
        told = subprocess.run(
            [sys.executable, "-c", LOGITS, str(ours), str(theirs)],
            check=True,
            capture_output=True,
            text=True,
        )
        same = told.stdout.strip() == "True"
    for folder in (theirs, ours):
        shutil.rmtree(folder)
    return {"mergekit": merged, "moegraft": composed, "same_logits": same}


def measure_reflink(root: Path, size: str) -> dict:
    """Transfer on a file system that shares blocks: seconds inside, and new blocks."""
    host, donor = (prepare(root, size, seed) for seed in (1, 2))
    out = root / "out"
    script = (
        "import sys, time\n"
        "from moegraft.checkpoint import open_checkpoint\n"
        "from moegraft.transfer import apply_plan, component_recipe, plan_transfer\n"
        "host, donor, out = sys.argv[1:]\n"
        "start = time.perf_counter()\n"
        "recipe = component_recipe(host, donor, 'router+experts')\n"
        "donors = {'donor': open_checkpoint(donor)}\n"
        "plan = plan_transfer(recipe, open_checkpoint(host), donors)\n"
        "planned = time.perf_counter()\n"
        "apply_plan(plan, out)\n"
        "print(planned - start, time.perf_counter() - planned)\n"
    )
    os.sync()
    before = free_bytes(root)
    start = time.perf_counter()
    told = subprocess.run(
        [sys.executable, "-c", script, *map(str, (host, donor, out))],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    os.sync()
    new_bytes = before - free_bytes(root)
    plan_seconds, write_seconds = map(float, told.stdout.split())
    nbytes = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    shutil.rmtree(out)
    return {
        "process": seconds,
        "plan": plan_seconds,
        "write": write_seconds,
        "new_bytes": new_bytes,
        "nbytes": nbytes,
        "fs": file_system(root),
    }


def free_bytes(folder: Path) -> int:
    """Free bytes of the file system under `folder`."""
    found = os.statvfs(folder)
    return found.f_bfree * found.f_frsize


def file_system(folder: Path) -> str:
    """Type of the file system under `folder`, such as `ext4`."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if folder.resolve().is_relative_to(mount) and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]


def prepare(root: Path, size: str, seed: int, *, many: bool = False) -> Path:
    """The checkpoint of that size and seed, made on first use."""
    folder = root / ("many" if many else size) / f"seed-{seed}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # In a process of its own: a child's peak memory counts what its parent held at the fork.
        maker = [sys.executable, HERE / "make_checkpoint.py", folder, "--size", size]
        subprocess.run([*maker, "--seed", str(seed), *["--many"] * many], check=True)
    return folder


def cp_row(name: str, host: Path, found: dict) -> str:
    """One line of the first table."""
    nbytes = sum(file.stat().st_size for file in host.glob("*.safetensors"))
    low, high = found["ratios"][0], found["ratios"][-1]
    return (
        f"| {name} | {nbytes / 1e9:.3f} GB | {found['cp']:.2f} s | {found['moegraft']:.2f} s "
        f"| **{found['ratio']:.2f}** ({low:.2f} to {high:.2f}) "
        f"| {found['fastest_cp']:.2f} / {found['fastest']:.2f} s "
        f"| {found['cpu']:.2f} s | {found['peak'] / 1e6:.0f} MB |"
    )


def commit_here() -> str:
    """The commit of this clone."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=HERE, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def report(given: argparse.Namespace, cp: list[str], merges: list[str], links: list[str]) -> str:
    """The result file."""
    commit = commit_here()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = (
        f"{os.cpu_count()}-core {platform.machine()} machine, {memory:.0f} GB of memory, "
        f"{file_system(given.dir)}, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}"
    )
    words = ["--dir SCRATCH", f"--pairs {given.pairs}", "--sizes", *given.sizes]
    words += ["--many"] * given.many + ["--mergekit PYTHON"] * bool(given.mergekit)
    words += ["--reflink MOUNT"] * bool(given.reflink)
    lines = [
        "# Composing a checkpoint: moegraft beside cp and mergekit",
        "",
        f"Commit {commit}, {date.today():%Y-%m-%d}. {machine}.",
        "",
        f"    python benchmarks/compose.py {' '.join(words)}",
        "",
        f"Router and experts move from a donor into a host. Wall time of whole processes with "
        f"fsync, {given.pairs} alternating pairs; ratio = median over the pairs (lowest to "
        "highest).",
        "",
        "| checkpoint | size | cp -r | moegraft | ratio | fastest of both | CPU | peak memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *cp,
    ]
    for title, rows in (("mergekit", merges), ("File systems that share blocks", links)):
        lines += ["", f"## {title}", "", *rows] if rows else []
    return "\n".join(lines) + "\n"


def merge_row(name: str, found: dict) -> str:
    """One line of the comparison with mergekit."""
    theirs, ours = found["mergekit"], found["moegraft"]
    logits = {None: "not compared", True: "the same logits", False: "OTHER LOGITS"}
    return (
        f"- {name}: mergekit {theirs.seconds:.1f} s ({theirs.cpu_seconds:.1f} s CPU, "
        f"{theirs.peak_bytes / 1e9:.2f} GB), moegraft {ours.seconds:.2f} s "
        f"({ours.cpu_seconds:.2f} s CPU, {ours.peak_bytes / 1e9:.3f} GB); "
        f"{logits[found['same_logits']]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="scratch folder; inputs are kept")
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=["2gb"])
    parser.add_argument("--many", action="store_true", help="10 MB in 18,867 tensors too")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--mergekit", type=Path, help="python of a venv with mergekit")
    parser.add_argument(
        "--mergekit-sizes", nargs="*", default=["2gb"], help="of --sizes, or `many` (7 minutes)"
    )
    parser.add_argument("--reflink", type=Path, help="folder on XFS or btrfs")
    parser.add_argument("--reflink-size", choices=SIZES, default="3.5gb")
    parser.add_argument("--hardware", default=f"{os.cpu_count()}core-{platform.machine()}")
    parser.add_argument("--out", type=Path, help="result file; default in benchmarks/")
    given = parser.parse_args()
    cp, merges, links = [], [], []
    for name in [*given.sizes, *["many"] * given.many]:
        many = name == "many"
        size = "tiny" if many else name
        host, donor = (prepare(given.dir, size, seed, many=many) for seed in (1, 2))
        label = "18,867 tensors" if many else name
        cp.append(cp_row(label, host, compare_with_cp(host, donor, given.pairs)))
        if given.mergekit and name in given.mergekit_sizes:
            merges.append(merge_row(label, compare_with_mergekit(host, donor, given.mergekit)))
    if given.reflink:
        found = measure_reflink(given.reflink, given.reflink_size)
        links.append(
            f"- {found['fs']}, {found['nbytes'] / 1e9:.2f} GB: planned in {found['plan']:.3f} s "
            f"(headers of both), written in {found['write']:.3f} s with fsync, whole process "
            f"{found['process']:.2f} s; new blocks {found['new_bytes'] / 1e6:.2f} MB"
        )
    out = given.out or HERE / f"compose_{given.hardware}_{date.today():%Y%m}.md"
    out.write_text(report(given, cp, merges, links))
    print(json.dumps({"written": out.name}))
    print(out.read_text())


if __name__ == "__main__":
    main()
