"""Switch time, memory against the pre-flight, and nine configurations hot against nine on disk.

    python benchmarks/switch.py                     # 16 layers, 64 experts, hidden 512 (830 MB)
    python benchmarks/switch.py --size full         # OLMoE-1B-7B's widths: 27.7 GB, twice on disk
    python benchmarks/switch.py --out benchmarks/switch_HARDWARE_YYYYMM.md

Makes two random checkpoints with OLMoE's names. `--work DIR` says where; it is emptied again.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

import make_checkpoint
import moegraft
from moegraft.runtime import Host, fit
from moegraft.transfer import apply_plan, component_recipe, plan_transfer
from moegraft.transfer.live import configuration_patches

make_checkpoint.SIZES |= {
    "small": {"hidden": 256, "ffn": 128, "vocab": 8192, "heads": 4},
    "medium": {"hidden": 512, "ffn": 256, "vocab": 8192, "heads": 8},
}

CONFIGURATIONS = (
    "host",
    "router",
    "attention",
    "experts",
    "router+attention",
    "router+experts",
    "attention+experts",
    "router+attention+experts",
    "donor",
)

BUDGET = 1.15
"""Times one model: what the streamed mode may take."""


def load(host: Path, donor: Path, device: str, budget: float | None = None) -> Host:
    """Both checkpoints; with `budget`, in that many times one model."""
    donors = {"donor": str(donor)}
    one = fit.estimate_memory(str(host), {}, device=device).host_bytes if budget else 0
    limit = int(budget * one) if budget else None
    return Host.load(str(host), donors, device=device, memory_budget_bytes=limit)


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Of one fixed prompt, on the CPU."""
    ids = torch.arange(2, 34, device=next(model.parameters()).device)[None]
    with torch.no_grad():
        return model(ids).logits.cpu()


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def stopwatch(seconds: list[float]):
    """Append the wall time of the block to `seconds`."""
    synchronize()
    start = time.perf_counter()
    yield
    synchronize()
    seconds.append(time.perf_counter() - start)


def switch_times(host: Host, repetitions: int) -> list[dict]:
    """Time to enter and leave each configuration, patches made beforehand."""
    rows = []
    for configuration in CONFIGURATIONS:
        planning: list[float] = []
        enter: list[float] = []
        leave: list[float] = []
        with stopwatch(planning):
            patches = configuration_patches(host, configuration)
        for _ in range(repetitions):
            context = host.with_patches(patches)
            with stopwatch(enter):
                context.__enter__()
            with stopwatch(leave):
                context.__exit__(None, None, None)
        rows.append(
            {
                "configuration": configuration,
                "patches": len(patches),
                "planning": planning[0],
                "enter": summary(enter),
                "leave": summary(leave),
            }
        )
    return rows


def summary(seconds: list[float]) -> tuple[float, float]:
    """Median and 95th percentile."""
    ranked = sorted(seconds)
    return statistics.median(ranked), ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))]


def nine_hot(host: Host) -> tuple[float, dict[str, torch.Tensor]]:
    """Seconds spent on planning and switching for all nine, and their logits."""
    spent: list[float] = []
    found = {}
    for configuration in CONFIGURATIONS:
        with stopwatch(spent):
            context = host.with_patches(configuration_patches(host, configuration))
            model = context.__enter__()
        found[configuration] = logits(model)
        with stopwatch(spent):
            context.__exit__(None, None, None)
    return sum(spent), found


def nine_on_disk(host: Path, donor: Path, work: Path, device: str) -> tuple[float, float, dict]:
    """Seconds spent on planning and writing, and on loading, for all nine; and their logits."""
    written: list[float] = []
    loaded: list[float] = []
    found = {}
    for configuration in CONFIGURATIONS:
        folder = host
        if configuration != "host":
            folder = work / "composed"
            with stopwatch(written):
                recipe = component_recipe(str(host), str(donor), configuration)
                ours, theirs = (moegraft.open_checkpoint(path) for path in (host, donor))
                apply_plan(plan_transfer(recipe, ours, {"donor": theirs}), folder)
        with stopwatch(loaded):
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype="auto",
                device_map=None if device == "cpu" else {"": device},
                experts_implementation="eager" if device == "cpu" else "grouped_mm",
            )
        found[configuration] = logits(model)
        del model
        if folder != host:
            shutil.rmtree(folder)
    return sum(written), sum(loaded), found


def measure_memory(mode: str, host: Path, donor: Path, device: str) -> dict:
    """In a fresh process: the pre-flight's peak, and the real one after the largest switches."""
    command = [sys.executable, __file__, "--child", mode, str(host), str(donor), device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def child(mode: str, host: Path, donor: Path, device: str) -> dict:
    """What `measure_memory` runs."""
    before = resident_bytes("VmRSS")
    loaded = load(host, donor, device, BUDGET if mode == "streamed" else None)
    assert loaded.memory.mode == mode, loaded.memory
    for configuration in ("experts", "donor"):
        with loaded.with_patches(configuration_patches(loaded, configuration)):
            pass
    on_gpu = device.startswith("cuda")
    return {
        "mode": mode,
        "estimate": loaded.memory.peak_bytes,
        "measured": torch.cuda.max_memory_allocated() if on_gpu else resident_bytes("VmHWM"),
        "model": loaded.memory.host_bytes,
        "process": loaded.memory.process_bytes,
        "before": before,
    }


def resident_bytes(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (peak) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}")


def commit() -> str:
    """The commit that is measured."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    root = Path(__file__).parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def hardware(device: str) -> str:
    """The machine in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.machine()
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def report(size: str, device: str, results: dict) -> str:
    """The Markdown file."""
    model = results["memory"][0]["model"]
    lines = [
        "# Switching configurations",
        "",
        f"    python benchmarks/switch.py --size {size} --device {device}",
        "",
        f"{hardware(device)}; commit {commit()}; torch {torch.__version__}, transformers "
        f"{transformers.__version__}. Two random bf16 OLMoE of {fit.size(model)}: 16 layers, 64 "
        f"experts, widths `{size}`.",
        "",
        "## Switch time, host and donor resident",
        "",
        f"{results['repetitions']} times each, patches made beforehand (planning, once each, is "
        "its own column). Streamed: one model in memory, donors on disk.",
        "",
        "| configuration | patches | planning, ms | in, ms (median / p95) | out, ms | "
        "streamed in, ms | streamed out, ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row, slow in zip(results["resident"], results["streamed"], strict=True):
        cells = [f"{1e3 * m:.2f} / {1e3 * p:.2f}" for m, p in (row["enter"], row["leave"])]
        slow_cells = [f"{1e3 * slow[way][0]:.0f}" for way in ("enter", "leave")]
        lines.append(
            f"| {row['configuration']} | {row['patches']} | {1e3 * row['planning']:.1f} | "
            f"{' | '.join(cells)} | {' | '.join(slow_cells)} |"
        )
    hot, written, loaded = results["hot"], results["written"], results["loaded"]
    lines += [
        "",
        "## Nine configurations, everything but the forward passes",
        "",
        "| | seconds |",
        "| --- | ---: |",
        f"| load host and donor once | {results['load']:.2f} |",
        f"| plan and switch, nine times | {hot:.3f} |",
        f"| **hot swap in all** | **{results['load'] + hot:.2f}** |",
        f"| plan and write eight checkpoints | {written:.2f} |",
        f"| load nine checkpoints with `from_pretrained` | {loaded:.2f} |",
        f"| **by disk in all** | **{written + loaded:.2f}** |",
        f"| ratio | {(written + loaded) / (results['load'] + hot):.1f} |",
        f"| ratio once host and donor are loaded | {(written + loaded) / hot:.0f} |",
        "",
        f"Logits of hot, streamed and written configurations: {results['agreement']}.",
        "",
        "## Peak memory of loading and switching, in a process of its own",
        "",
        "| mode | pre-flight | measured | measured / pre-flight | tensors / one model |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in results["memory"]:
        tensors = (row["measured"] - row["process"]) / row["model"]
        lines.append(
            f"| {row['mode']} | {fit.size(row['estimate'])} | {fit.size(row['measured'])} | "
            f"{row['measured'] / row['estimate']:.3f} | {tensors:.3f} |"
        )
    return "\n".join(lines) + "\n"


def run(size: str, device: str, repetitions: int, work: Path) -> dict:
    """Everything, in the order of the report."""
    host, donor = work / "host", work / "donor"
    for seed, path in enumerate((host, donor)):
        make_checkpoint.make_checkpoint(path, size=size, seed=seed)
    results: dict = {"repetitions": repetitions}
    results["memory"] = [
        measure_memory(mode, host, donor, device) for mode in ("resident", "streamed")
    ]
    loading: list[float] = []
    with stopwatch(loading):
        loaded = load(host, donor, device)
    results["load"] = loading[0]
    results["resident"] = switch_times(loaded, repetitions)
    results["hot"], hot = nine_hot(loaded)
    del loaded
    streamed = load(host, donor, device, BUDGET)
    results["streamed"] = switch_times(streamed, 1)
    _, cold = nine_hot(streamed)
    del streamed
    results["written"], results["loaded"], disk = nine_on_disk(host, donor, work, device)
    equal = [
        torch.equal(hot[name], other[name]) for name in CONFIGURATIONS for other in (cold, disk)
    ]
    results["agreement"] = f"{sum(equal)} of {len(equal)} comparisons bit-identical"
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=make_checkpoint.SIZES, default="medium")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--work", type=Path, help="where to make the checkpoints")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    transformers.logging.disable_progress_bar()
    if given.child:
        mode, host, donor, device = given.child
        print(json.dumps(child(mode, Path(host), Path(donor), device)))
        return
    with tempfile.TemporaryDirectory(dir=given.work, prefix="moegraft-switch-") as work:
        results = run(given.size, given.device, given.repetitions, Path(work))
    text = report(given.size, given.device, results)
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
