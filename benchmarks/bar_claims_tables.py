"""Tables of bar_claims.py's scores: mean and sd over seeds, the drop, paired differences.

    python benchmarks/bar_claims_tables.py --work DIR [--against bar] > TABLES.md

Reads DIR/seed*/scores/*.json. A domain's score is the mean of its kinds of question (safety: what
must be refused, and what must not); `mean` weighs the five domains equally. Differences are paired
by item, averaged over the seeds that both rows have; intervals are percentile bootstraps over the
items of each kind. They do not cover the choice of seeds, whose spread is the sd.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from moegraft.nano import domains
from moegraft.stats.inference import percentile_interval

COLUMNS = {
    "reading": ("reading",),
    "science": ("science",),
    "general": ("reading", "science"),
    "math": ("math",),
    "code": ("code",),
    "tool": ("tool",),
    "refused": ("refused",),
    "helped": ("helped",),
    "safety": ("refused", "helped"),
}
"""Column: the kinds of question whose mean it is."""
DOMAINS = ("general", "math", "code", "tool", "safety")
NUM_RESAMPLES = 10_000

Scores = Mapping[str, np.ndarray]
"""By kind of question, one number an item."""


def read(path: Path) -> Scores:
    """Scores of one row; safety is split into harmful requests and benign ones."""
    found = {kind: np.array(scores, float) for kind, scores in json.loads(path.read_text()).items()}
    safety = found.pop("safety")
    harmful = np.array([i["refuse"] for i in domains.test_items("safety", len(safety))])
    return found | {"refused": safety[harmful], "helped": safety[~harmful]}


def read_all(work: Path) -> dict[str, dict[int, Scores]]:
    """By row and seed."""
    found: dict[str, dict[int, Scores]] = {}
    for path in sorted(work.glob("seed*/scores/*.json")):
        seed = int(path.parent.parent.name.removeprefix("seed"))
        found.setdefault(path.stem, {})[seed] = read(path)
    return found


def columns(means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every column, and the mean over domains, from the means by kind."""
    found = {name: np.mean([means[k] for k in kinds], axis=0) for name, kinds in COLUMNS.items()}
    return found | {"mean": np.mean([found[domain] for domain in DOMAINS], axis=0)}


def of_seed(scores: Scores) -> dict[str, float]:
    """Every column of one seed, in percent."""
    means = {kind: np.array(100 * s.mean()) for kind, s in scores.items()}
    return {name: float(value) for name, value in columns(means).items()}


def difference(ours: dict[int, Scores], theirs: dict[int, Scores], seed: int = 0) -> dict[str, str]:
    """Ours minus theirs by column, in points, with its interval."""
    shared = sorted(ours.keys() & theirs.keys())
    rng = np.random.default_rng(seed)
    points, draws = {}, {}
    for kind in ours[shared[0]]:
        items = np.mean([ours[s][kind] - theirs[s][kind] for s in shared], axis=0)
        picked = rng.integers(0, len(items), size=(NUM_RESAMPLES, len(items)))
        points[kind] = np.array(100 * items.mean())
        draws[kind] = 100 * items[picked].mean(axis=1)
    centre, spread = columns(points), columns(draws)
    told = {}
    for name in centre:
        interval = percentile_interval(spread[name])
        told[name] = f"{centre[name]:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"
    return told


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="what bar_claims.py wrote")
    parser.add_argument("--against", default="bar", help="the row that others are compared with")
    arguments = parser.parse_args()
    found = read_all(arguments.work)
    names = [*COLUMNS, "mean"]
    rows = []
    for row, seeds in found.items():
        values = [of_seed(scores) for scores in seeds.values()]
        cells = []
        for name in names:
            column = [value[name] for value in values]
            spread = f" ± {np.std(column, ddof=1):.1f}" if len(column) > 1 else ""
            cells.append(f"{np.mean(column):.1f}{spread}")
        rows.append([row, str(len(seeds)), *cells])
    print(table(["row", "seeds", *names], rows), end="\n\n")
    for other in ("start", arguments.against):
        compared = [
            [row, *difference(seeds, found[other]).values()]
            for row, seeds in found.items()
            if other in found and row != other and seeds.keys() & found[other].keys()
        ]
        if compared:
            print(f"Difference from `{other}`, in points:\n")
            print(table(["row", *names], compared), end="\n\n")


if __name__ == "__main__":
    main()
