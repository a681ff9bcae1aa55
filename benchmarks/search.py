"""The search for a composition against parents, the paper's eight, chance, and whole-model mixes.

    python benchmarks/search.py [--host nano:sft-dpo] [--donor nano:rlvr] [--budget 4000]
        [--conditions nano_math/cot,...] [--seeds 0,1,2] [--confirm-items 500] [--out FILE.md]

Every method chooses on the same items and is judged on the same other ones, which none has seen:
- guided: `moegraft select --search`;
- random: random units, the same budget and the same final comparison by score;
- eight: the best by score of the paper's compositions, host and nothing else left out;
- linear, slerp: all weights mixed, at the best by score of nine weights.
Budgets are counted in item evaluations; a gradient counts three. Seeds order the items, and with
them which ones are seen and which held out.
"""

import argparse
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import moegraft
from moegraft.evals.execution import Execution
from moegraft.sweep.design import DONOR, NANO_CONDITIONS
from moegraft.sweep.search import Arena, guided_search, random_search
from moegraft.sweep.search_run import Confirmed, SearchRecipe, open_arena
from moegraft.transfer.live import patches
from moegraft.transfer.plan import plan_transfer
from moegraft.transfer.recipe import Selection, TransferRecipe

WEIGHTS = tuple(k / 10 for k in range(1, 10))


@dataclass
class Found:
    """What a method chose, what that cost, and its scores on the held-out items."""

    method: str
    choice: str
    spent: int
    scores: np.ndarray


def fresh(arena: Arena) -> Arena:
    """The same question with nothing known and nothing spent."""
    return replace(arena, spent=0, golds={}, finals={})


def by_search(
    name: str, method: Callable[[Arena], Any], arena: Arena, held_out: tuple[Any, ...]
) -> Found:
    arena = fresh(arena)
    chosen = method(arena)
    spent = arena.spent
    for one, score in arena.finals.items():
        print(f"{name}, finalist: {arena.space.describe(one)}: {100 * score:.1f} %", flush=True)
    with arena.taking(chosen):
        scores = arena.scores(held_out)
    return Found(name, arena.space.describe(chosen), spent, scores)


def best_of_eight(arena: Arena) -> Any:
    """The best of the paper's seven transfers by score."""
    return arena.best_by_score([one for one in arena.space.presets() if one])


@contextmanager
def mixed(arena: Arena, rule: Any, weight: float) -> Iterator[None]:
    """All that can move is mixed."""
    host = arena.question.host
    donor = host.donor_checkpoints[DONOR]
    all_of_it = Selection(("all",), rule=rule, weight=weight)
    recipe = TransferRecipe(host.checkpoint.source, {DONOR: donor.source}, (all_of_it,))
    plan = plan_transfer(recipe, host.checkpoint, {DONOR: donor})
    with host.with_patches(patches(plan, host)):
        yield


def by_mixing(rule: str, arena: Arena, held_out: tuple[Any, ...]) -> Found:
    """The best weight by score; of equals, the one nearest to the middle."""
    means = {}
    for weight in sorted(WEIGHTS, key=lambda w: abs(w - 0.5)):
        with mixed(arena, rule, weight):
            means[weight] = float(arena.scores(arena.score_items).mean())
    best = max(means, key=lambda weight: means[weight])
    with mixed(arena, rule, best):
        scores = arena.scores(held_out)
    return Found(rule, f"weight {best:g}", len(WEIGHTS) * len(arena.score_items), scores)


def compare(args: argparse.Namespace, condition: str, seed: int) -> list[tuple[str, ...]]:
    """Rows of one condition under one order of items."""
    recipe = SearchRecipe(
        args.host,
        args.donor,
        condition,
        budget=args.budget,
        groups=args.groups,
        confirm_items=args.confirm_items,
        seed=seed,
    )
    how = Execution(device=args.device, data_dir=args.data, include=tuple(args.include))
    arena, held_out = open_arena(recipe, how)
    parents = Confirmed.parents(arena, held_out)
    guided = by_search("guided search", guided_search, arena, held_out)
    others = [
        Found("host", "", 0, parents.host),
        Found("donor", "", 0, parents.donor),
        by_search("best of eight", best_of_eight, arena, held_out),
        by_search("random search", random_search, arena, held_out),
        by_mixing("linear", arena, held_out),
        by_mixing("slerp", arena, held_out),
    ]
    judged = parents.judge(guided.scores)
    verdict = "exceeds both parents"
    if not judged["exceeds"]:
        verdict = f"not established: ship the {judged['parent']}"
    rows = [
        (condition, str(seed), "guided search", guided.choice, f"{guided.spent}",
         f"{100 * guided.scores.mean():.1f}", verdict)
    ]  # fmt: skip
    for other in others:
        test = parents.test(guided.scores, other.scores)
        low, high = (100 * end for end in test["interval"])
        gain = f"{100 * test['difference']:+.1f} [{low:.1f}, {high:.1f}], p = {test['p']:.3f}"
        score = f"{100 * other.scores.mean():.1f}"
        names = (condition, str(seed), other.method, other.choice)
        rows.append((*names, str(other.spent), score, gain))
    for row in rows:
        print(" | ".join(row), flush=True)
    return rows


def report(args: argparse.Namespace, rows: list[tuple[str, ...]]) -> str:
    header = ("condition", "seed", "method", "choice", "spent", "held-out score, %",
              "guided minus this, points")  # fmt: skip
    lines = [header, ("---", "---:", "---", "---", "---:", "---:", "---"), *rows]
    about = (
        f"`python benchmarks/search.py --host {args.host} --donor {args.donor} --conditions "
        f"{args.conditions} --budget {args.budget} --groups {args.groups} --confirm-items "
        f"{args.confirm_items} --seeds {args.seeds}`, moegraft {moegraft.__version__}, torch "
        f"{torch.__version__}, {os.cpu_count()} {platform.machine()} cores. Paired 95 % intervals "
        "and exact p on the held-out items, one comparison each, not adjusted for their number."
    )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# Searching for a composition\n\n{about}\n\n{table}\n\n{_means(rows)}\n"


def _means(rows: list[tuple[str, ...]]) -> str:
    """Mean held-out score of each method over conditions and seeds."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row[2], []).append(float(row[5]))
    lines = [f"| {name} | {np.mean(values):.1f} |" for name, values in scores.items()]
    return "\n".join(["| method | mean held-out score, % |", "| --- | ---: |", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="nano:sft-dpo")
    parser.add_argument("--donor", default="nano:rlvr")
    parser.add_argument("--conditions", default=",".join(NANO_CONDITIONS))
    parser.add_argument("--budget", type=int, default=4000)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--confirm-items", type=int, default=500)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--include", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = [
        row
        for condition in args.conditions.split(",")
        for seed in args.seeds.split(",")
        for row in compare(args, condition, int(seed))
    ]
    text = report(args, rows)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
