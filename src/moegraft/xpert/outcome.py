"""What a comparison of starts shows: losses, steps to the baseline's end, paired differences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from moegraft.config import recipe_content
from moegraft.stats.multiplicity import holm
from moegraft.stats.seeds import paired_seed_test
from moegraft.xpert.arms import ARMS, BASELINE, METHOD
from moegraft.xpert.compare_recipe import CompareRecipe

Result = Mapping[str, Any]
LEVEL = 0.95


def summarise(
    recipe: CompareRecipe, results: Sequence[Result], about: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of summary.json.

    Differences are of validation losses after the last step, paired over seeds (data order, fresh
    weights) and validation blocks, both taken as random; p-values are Holm's within a protocol.
    Every domain has equal weight.

    Args:
        recipe: of the comparison.
        results: of every training.
        about: what else stands in the summary.
    """
    return {
        "schema": 1,
        "recipe": recipe_content(recipe),
        **about,
        "protocols": {
            protocol: _protocol([one for one in results if one["protocol"] == protocol], recipe)
            for protocol in recipe.protocols
        },
    }


def _protocol(results: Sequence[Result], recipe: CompareRecipe) -> dict[str, Any]:
    by_arm = {arm: [one for one in results if one["arm"] == arm] for arm in recipe.arms}
    curves = {arm: np.array([_losses(one) for one in own]) for arm, own in by_arm.items()}
    steps = np.array([point["step"] for point in results[0]["curve"]], dtype=float)
    tokens = [point["tokens"] for point in results[0]["curve"]]
    ends = curves[BASELINE][:, -1]
    others = {arm: own for arm, own in by_arm.items() if arm != BASELINE}
    against = _against(others, by_arm[BASELINE])
    arms = {}
    for arm, own in curves.items():
        reached = [_first_step(steps, row, end) for row, end in zip(own, ends, strict=True)]
        there = [step for step in reached if step is not None]
        arms[arm] = {
            "what": ARMS[arm].what,
            "tokens": tokens,
            "mean": own.mean(axis=0).tolist(),
            "deviation": own.std(axis=0, ddof=1).tolist(),
            "first": float(own[:, 0].mean()),
            "final": float(own[:, -1].mean()),
            "final_deviation": float(own[:, -1].std(ddof=1)),
            "area": float((np.trapezoid(own, steps, axis=1) / steps[-1]).mean()),
            "steps_to_baseline": None if len(there) < len(own) else float(np.mean(there)),
            "num_reached": len(there),
            "against_baseline": against.get(arm),
        }
    method = by_arm.get(METHOD)
    return {
        "num_steps": int(steps[-1]),
        "arms": arms,
        "method_against": None
        if method is None
        else _against({a: own for a, own in others.items() if a != METHOD}, method),
    }


def _against(arms: Mapping[str, Sequence[Result]], other: Sequence[Result]) -> dict[str, Any]:
    """Final loss of each arm minus that of `other`."""
    if not arms:
        return {}
    tests = {arm: _test(own, other) for arm, own in arms.items()}
    adjusted = holm([p for _, p in tests.values()])
    return {
        arm: {
            "difference": estimate.value,
            "interval": [estimate.interval.low, estimate.interval.high],
            "p": p,
            "p_holm": q,
        }
        for (arm, (estimate, p)), q in zip(tests.items(), adjusted, strict=True)
    }


def _test(own: Sequence[Result], other: Sequence[Result]) -> Any:
    sizes = {name: len(blocks) for name, blocks in own[0]["blocks"].items()}
    weights = np.concatenate([np.full(n, 1 / n / len(sizes)) for n in sizes.values()])
    strata = [name for name, n in sizes.items() for _ in range(n)]
    difference = np.array([_blocks(a) - _blocks(b) for a, b in zip(own, other, strict=True)])
    return paired_seed_test(difference, weights=weights, strata=strata, level=LEVEL)


def _blocks(result: Result) -> Float[np.ndarray, " block"]:
    return np.concatenate([np.array(blocks) for blocks in result["blocks"].values()])


def _losses(result: Result) -> list[float]:
    """Mean over domains at every validation."""
    return [float(np.mean(list(point["validation"].values()))) for point in result["curve"]]


def _first_step(
    steps: Float[np.ndarray, " point"], losses: Float[np.ndarray, " point"], wanted: float
) -> float | None:
    """Where the curve first falls to `wanted`, between two points by straight line."""
    below = np.flatnonzero(losses <= wanted)
    if not len(below):
        return None
    place = int(below[0])
    if place == 0:
        return float(steps[0])
    high, low = losses[place - 1], losses[place]
    share = (high - wanted) / (high - low)
    return float(steps[place - 1] + share * (steps[place] - steps[place - 1]))
