"""How often the gate's test over clusters passes: a model that lost the margin, and an equal one.

    python benchmarks/margins.py [--runs 4000] [--out FILE.md]

Designs are those of tests/stats/test_equivalence.py: sizes of clusters, and how often one loses or
gains all its items. Beside the test stands the reference that it had first: Kish's number of
clusters, (sum n)^2 / sum n^2, and a missing cluster of typical size, sum n^2 / sum n.
"""

import argparse
import os
import platform
import sys
from pathlib import Path

import numpy as np
from scipy.special import stdtr

import moegraft
from moegraft.stats.equivalence import _score, score_p

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "stats"))
from test_equivalence import UNEQUAL

ALPHA, NUM_ERRORS = 0.05, 2.5
"""Level, and the margin of the power columns in standard errors of the difference."""


def first_p(sums: np.ndarray, sizes: np.ndarray, null: float) -> float:
    """The p of the first reference."""
    typical = float(np.sum(sizes**2) / np.sum(sizes))
    num = float(sizes.sum() ** 2 / np.sum(sizes**2))
    if num <= 1.5:
        return 1.0
    # `_score` takes the loss of the missing cluster as bound x largest size: scale the bound.
    bound = (1 + null) * typical / sizes.max() - null
    statistic = _score(sums, sizes, null, bound)
    return float(stdtr(num - 1, -statistic * np.sqrt((num - 1) / num)))


def rates(
    sizes: np.ndarray, lost: np.ndarray, gained: np.ndarray, margin: float, runs: int
) -> tuple[float, float]:
    """Share of passes under the test and under its first reference."""
    rng = np.random.default_rng(7)
    passed = np.zeros(2)
    for _ in range(runs):
        luck = rng.random(len(sizes))
        sums = ((luck > 1 - gained) * 1.0 - (luck < lost)) * sizes
        passed += [score_p(sums, sizes, -margin) < ALPHA, first_p(sums, sizes, -margin) < ALPHA]
    new, first = passed / runs
    return float(new), float(first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = [
        "# False passes and power of the gate where items share a text",
        "",
        f"`python benchmarks/margins.py --runs {args.runs}`, moegraft {moegraft.__version__}, "
        f"{os.cpu_count()} {platform.machine()} cores. False passes: the model truly lost the "
        f"margin (bar: {100 * ALPHA:g} %). Power: it lost nothing, at a margin of {NUM_ERRORS:g} "
        "standard errors. In brackets what the first reference gave (Kish's number of clusters).",
        "",
        "| design | clusters | margin, points | false passes, % | margin, points | power, % |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, (given, chances) in UNEQUAL.items():
        sizes = np.array(given, dtype=float)
        lost, gained = np.where((sizes > sizes.min())[:, None], chances[-1], chances[0]).T
        margin = float(sizes @ (lost - gained)) / sizes.sum()
        false = rates(sizes, lost, gained, margin, args.runs)
        equal = (lost + gained) / 2
        wide = NUM_ERRORS * float(np.sqrt(np.sum(sizes**2 * 2 * equal))) / sizes.sum()
        power = rates(sizes, equal, equal, wide, args.runs)
        cells = (f"{100 * new:.1f} [{100 * first:.1f}]" for new, first in (false, power))
        sized = zip((margin, wide), cells, strict=True)
        text = " | ".join(f"{100 * size:.1f} | {cell}" for size, cell in sized)
        lines.append(f"| {name} | {len(sizes)} | {text} |")
        print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
