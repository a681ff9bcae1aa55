"""Tables of bar_claims.py's scores: mean and sd over seeds, the drop, paired differences.

    python benchmarks/bar_claims_tables.py --work DIR [--against bar] > TABLES.md

Reads DIR/seed*/scores/*.json. A domain's score is the mean of its kinds of question (safety: what
must be refused, and what must not); `mean` weighs the five domains equally. Differences are paired
by seed and item over the seeds that both rows have: a t test with seeds and items as crossed random
factors (`moegraft.stats.seeds`); with one seed only, a percentile bootstrap over items. Rewards of
reinforcement learning are read from DIR/seed*/*/stages/*-rl/train.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from moegraft.nano import domains
from moegraft.stats.inference import percentile_interval
from moegraft.stats.seeds import paired_seed_test
from moegraft.train.loop import read_metrics

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
CURVE_PARTS = 6
"""Equal parts of a training over which rewards are averaged."""

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
    """Ours minus theirs by column, in points, with its interval, and p of several seeds."""
    shared = sorted(ours.keys() & theirs.keys())
    apart = {
        kind: 100 * np.stack([ours[s][kind] - theirs[s][kind] for s in shared])
        for kind in ours[shared[0]]
    }
    return _over_items(apart, seed) if len(shared) == 1 else _over_seeds_and_items(apart)


def _over_items(apart: Mapping[str, np.ndarray], seed: int) -> dict[str, str]:
    """One seed: percentile bootstrap over the items of each kind."""
    rng = np.random.default_rng(seed)
    draws = {}
    for kind, rows in apart.items():
        picked = rng.integers(0, rows.shape[1], size=(NUM_RESAMPLES, rows.shape[1]))
        draws[kind] = rows[0][picked].mean(axis=1)
    centre = columns({kind: np.array(rows.mean()) for kind, rows in apart.items()})
    told = {}
    for name, values in columns(draws).items():
        interval = percentile_interval(values)
        told[name] = f"{centre[name]:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"
    return told


def _over_seeds_and_items(apart: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Several seeds: t test with seeds and items as crossed random factors."""
    kinds = [*apart]
    shares = columns({kind: np.array([float(kind == k) for k in kinds]) for kind in kinds})
    told = {}
    for name, share in shares.items():
        used = [(kind, part) for kind, part in zip(kinds, share, strict=True) if part]
        sizes = [apart[kind].shape[1] for kind, _ in used]
        weights = [np.full(size, part / size) for (_, part), size in zip(used, sizes, strict=True)]
        estimate, p = paired_seed_test(
            np.concatenate([apart[kind] for kind, _ in used], axis=1),
            weights=np.concatenate(weights),
            strata=[kind for (kind, _), size in zip(used, sizes, strict=True) for _ in range(size)],
        )
        low, high = max(-100.0, estimate.interval.low), min(100.0, estimate.interval.high)
        said = f"p {p:.3f}" if p >= 0.001 else "p < 0.001"
        told[name] = f"{estimate.value:+.1f} [{low:+.1f}, {high:+.1f}] {said}"
    return told


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reward_curves(work: Path) -> dict[str, list[np.ndarray]]:
    """By row: of every seed, the share of right samples in each part of its training, in percent.

    Trainings that are not finished are left out.
    """
    found: dict[str, list[np.ndarray]] = {}
    for train in sorted(work.glob("seed*/*/stages/*-rl/train")):
        run = train.parents[2]
        if (run / "DONE").exists():
            rewards = [
                r["rewards/answer_reward/mean"] for r in read_metrics(train) if "reward" in r
            ]
            parts = np.array_split(100 * np.array(rewards), CURVE_PARTS)
            found.setdefault(run.name, []).append(np.array([part.mean() for part in parts]))
    return found


def _mean_and_spread(column: Sequence[float]) -> str:
    spread = f" ± {np.std(column, ddof=1):.1f}" if len(column) > 1 else ""
    return f"{np.mean(column):.1f}{spread}"


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
        cells = [_mean_and_spread([value[name] for value in values]) for name in names]
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
    curves = reward_curves(arguments.work)
    if curves:
        parts = [f"part {part + 1}" for part in range(CURVE_PARTS)]
        told = [
            [row, str(len(seeds)), *map(_mean_and_spread, zip(*seeds, strict=True))]
            for row, seeds in curves.items()
        ]
        print("Samples that earn their reward, in percent, over equal parts of the training:\n")
        print(table(["row", "seeds", *parts], told), end="\n\n")


if __name__ == "__main__":
    main()
