"""Peak memory of `moegraft bar merge` as branches become more and larger.

    python benchmarks/bar_merge.py --dir SCRATCH
    python benchmarks/bar_merge.py --dir SCRATCH --layers 2 8 --branches 1 4 --hidden 1024

Random olmo2 anchors in bf16, and branches of them in which every tensor that may move has moved in
each number's last bit, so that every shared tensor is averaged and none is skipped. Each merge is a
process of its own. Two numbers are read from it: the peak of all its pages, those of mapped
checkpoint files included, which the system takes back when it needs memory; and the peak of
anonymous memory, which it cannot take back. `--dry-run` of the same command, which checks and
hashes but averages nothing, says what Python, torch and the headers take. Writes
benchmarks/bar_merge_<hardware>_<yyyymm>.md. Needs (branches + 2) times the size on disk.
"""

import argparse
import json
import os
import shutil
import sys
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np

from compose import HERE, commit_here, measure
from make_checkpoint import entry, write_json
from moegraft.bar.branch import BranchRecipe, plan_branch, write_branch
from moegraft.bar.manifest import read_manifest
from moegraft.bar.names import named_pieces
from moegraft.checkpoint import open_checkpoint
from moegraft.checkpoint.writer import plan_shards, staged_output, write_shards

WATCHED = """
import sys, threading, time
from pathlib import Path
def read(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return max(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024
peak = 0
def watch():
    global peak
    while True:
        peak = max(peak, read("RssAnon"))
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
from moegraft.cli import main
file, sys.argv = sys.argv[-1], ["moegraft", *sys.argv[1:-1]]
try:
    main()
finally:
    Path(file).write_text(f"{read('VmHWM')} {peak}")
"""


class Row(NamedTuple):
    """One merge."""

    layers: int
    branches: int
    anchor: int
    """Bytes of the anchor."""
    total: int
    """Bytes of all inputs."""
    largest: int
    """Bytes of the largest averaged tensor."""
    dry: tuple[int, int]
    """Peak of all pages and of anonymous memory without averaging."""
    merge: tuple[int, int]
    cpu_seconds: float


def make_anchor(out: Path, *, layers: int, hidden: int) -> None:
    """A random olmo2 with a vocabulary of 50,304 and FFNs of four times its width."""
    config = {
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "vocab_size": 50304,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }
    rng = np.random.Generator(np.random.SFC64(layers))
    shapes = {"model.embed_tokens.weight": (50304, hidden), "lm_head.weight": (50304, hidden)}
    shapes["model.norm.weight"] = (hidden,)
    for layer in range(layers):
        start = f"model.layers.{layer}."
        shapes |= {f"{start}self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        shapes |= {f"{start}self_attn.{part}_norm.weight": (hidden,) for part in "qk"}
        shapes |= {
            f"{start}mlp.{part}_proj.weight": (4 * hidden, hidden) for part in ("gate", "up")
        }
        shapes[f"{start}mlp.down_proj.weight"] = (hidden, 4 * hidden)
        for norm in ("post_attention", "post_feedforward"):
            shapes[f"{start}{norm}_layernorm.weight"] = (hidden,)
    entries = [entry(name, shape, rng) for name, shape in shapes.items()]
    with staged_output(out, needed_bytes=sum(one.nbytes for one in entries)) as folder:
        write_shards(folder, plan_shards(entries))
        write_json(folder / "config.json", config)


def make_branch(anchor: Path, out: Path) -> None:
    """A branch of `anchor` in which every number that may move has another last bit."""
    write_branch(plan_branch(BranchRecipe(str(anchor), out.name)), out)
    frozen = read_manifest(out).frozen
    for name, stored in named_pieces(open_checkpoint(out)).items():
        if name in frozen or "gate" in name.split(".")[-2:]:
            continue
        with stored.file.open("r+b") as stream:
            stream.seek(stored.start)
            words = np.frombuffer(stream.read(stored.nbytes), "<u2") ^ np.uint16(1)
            stream.seek(stored.start)
            stream.write(words.tobytes())


def peaks(command: list[str], root: Path) -> tuple[tuple[int, int], float]:
    """Peaks of all pages and of anonymous memory of one command, and its CPU seconds."""
    file = root / "peaks"
    cost = measure([sys.executable, "-c", WATCHED, *command, str(file)])
    pages, anonymous = map(int, file.read_text().split())
    return (pages, anonymous), cost.cpu_seconds


def merged(root: Path, layers: int, branches: int, hidden: int) -> Row:
    """Make what is missing, and merge."""
    anchor = root / f"anchor-{layers}-{hidden}"
    if not anchor.exists():
        make_anchor(anchor, layers=layers, hidden=hidden)
    folders = [root / f"branch-{layers}-{hidden}-{number}" for number in range(branches)]
    for folder in folders:
        if not folder.exists():
            make_branch(anchor, folder)
    command = ["bar", "merge", "--anchor", str(anchor), "--json"]
    command += [word for folder in folders for word in ("--branch", str(folder))]
    dry, _ = peaks([*command, "--dry-run"], root)
    whole, cpu_seconds = peaks([*command, "--out", str(root / "merged")], root)
    shutil.rmtree(root / "merged")
    sizes = [sum(f.stat().st_size for f in one.glob("*.safetensors")) for one in (anchor, *folders)]
    return Row(layers, branches, sizes[0], sum(sizes), 2 * 50304 * hidden, dry, whole, cpu_seconds)


def report(given: argparse.Namespace, rows: list[Row]) -> str:
    """The result file."""
    commit = commit_here()
    table = "\n".join(
        f"| {r.layers} | {r.branches} | {r.anchor / 1e6:.0f} | {r.total / 1e6:.0f} "
        f"| {r.largest / 1e6:.0f} | {r.dry[0] / 1e6:.0f} | {r.merge[0] / 1e6:.0f} "
        f"| {(r.branches + 1) * r.largest / 1e6:.0f} | {r.dry[1] / 1e6:.0f} "
        f"| {r.merge[1] / 1e6:.0f} | {r.cpu_seconds:.1f} |"
        for r in rows
    )
    words = ["--layers", *map(str, given.layers), "--branches", *map(str, given.branches)]
    return f"""# Peak memory of a merge

`python benchmarks/bar_merge.py --dir SCRATCH {" ".join(words)} --hidden {given.hidden}`, commit \
{commit}, {given.machine}, {date.today():%B %Y}. Sizes in MB; one process each.

Random olmo2 anchors in bf16 (hidden {given.hidden}, FFN {4 * given.hidden}, vocabulary 50,304); \
every tensor of a branch that may move has moved, so every shared tensor is averaged.

| layers | branches | anchor | all inputs | largest averaged tensor | all pages, --dry-run \
| all pages, merge | one tensor x models | anonymous, --dry-run | anonymous, merge | CPU seconds |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{table}

"All pages" counts pages of mapped checkpoint files, which the system takes back when it needs \
them; "anonymous" is what it cannot take back. One tensor x models is the largest tensor times \
branches and anchor.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="scratch folder; inputs are kept")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--branches", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--machine", default=f"{os.cpu_count()}-core x86-64 VM")
    parser.add_argument("--hardware", default=f"cpu{os.cpu_count()}")
    parser.add_argument("--out", type=Path, help="result file; default in benchmarks/")
    given = parser.parse_args()
    given.dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for layers in given.layers:
        for branches in given.branches:
            rows.append(merged(given.dir, layers, branches, given.hidden))
            print(json.dumps(rows[-1]._asdict()), flush=True)
    out = given.out or HERE / f"bar_merge_{given.hardware}_{date.today():%Y%m}.md"
    out.write_text(report(given, rows))


if __name__ == "__main__":
    main()
