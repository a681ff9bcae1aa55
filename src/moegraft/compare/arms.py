"""Training recipes as arms of several seeds each: what a comparison says of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil, inf
from typing import Any

import numpy as np
from jaxtyping import Float

from moegraft.compare.results import Paired, Pairing
from moegraft.errors import ResultsError
from moegraft.stats import Interval, detectable_by_error, seed_mean, seed_test

Arms = Mapping[str, Sequence[str]]
Pick = Callable[[str, str], bool]

_Entry = dict[str, Any]


def check_arms(arms: Arms, pairing: Pairing) -> None:
    """Refuse arms that are no sets of seeds on the same items.

    Raises:
        ResultsError: fewer than two arms, fewer than two seeds in one, a model that is in no arm,
            in two, or not there, or items that not every model has.
    """
    placed: dict[str, str] = {}
    for arm, seeds in arms.items():
        if len(seeds) < 2:
            raise ResultsError(
                f"--arm {arm}: an arm needs two or more training seeds, got "
                f"{', '.join(seeds) or 'none'}; a single seed says nothing about seeds"
            )
        for model in seeds:
            if model not in pairing.models:
                known = ", ".join(pairing.models)
                raise ResultsError(f"--arm {arm}: no model {model!r}; there are {known}")
            if model in placed:
                raise ResultsError(f"--arm {arm}: {model} stands in {placed[model]} already")
            placed[model] = arm
    left = [model for model in pairing.models if model not in placed]
    if left:
        raise ResultsError(f"{left[0]} is in no --arm; name it in one, or leave it out")
    if len(arms) < 2:
        raise ResultsError(f"only one --arm ({next(iter(arms))}); a comparison needs two or more")
    for one in pairing.conditions:
        for model, count in one.left_out.items():
            raise ResultsError(
                f"{one.condition}: {count} items of {model} are missing elsewhere; training seeds "
                "are compared on the same items only"
            )


@dataclass(frozen=True, slots=True)
class Rows:
    """Scores of all arms on the items of one condition, or of several pooled ones."""

    scores: Mapping[str, Float[np.ndarray, "seed item"]]
    seeds: Arms
    clusters: Sequence[str | None] | None
    weights: Float[np.ndarray, "item"] | None = None
    strata: Sequence[str] | None = None

    @classmethod
    def of(cls, one: Paired, arms: Arms) -> "Rows":
        """The scores of one condition by arm."""
        columns = {model: one.scores[:, place] for place, model in enumerate(one.models)}
        scores = {arm: np.stack([columns[m] for m in seeds]) for arm, seeds in arms.items()}
        return cls(scores, arms, one.clusters)

    def ranking(self) -> list[_Entry]:
        """Arms by their mean over seeds, best first, with what each seed scores."""
        entries = []
        for arm, rows in self.scores.items():
            found = seed_mean(rows, **self._how())
            means = rows.mean(axis=1) if self.weights is None else rows @ self.weights
            entries.append(
                {
                    "model": arm,
                    "score": found.value,
                    "interval": self._within(found.interval, 0.0),
                    "seeds": dict(zip(self.seeds[arm], map(float, means), strict=True)),
                }
            )
        return sorted(entries, key=lambda entry: (-entry["score"], entry["model"]))

    def comparisons(self, names: Sequence[str], wanted: Pick) -> list[_Entry]:
        """Tests of every wanted pair of arms, which are named best first."""
        return [self._test(a, b) for a, b in combinations(names, 2) if wanted(a, b)]

    def _test(self, a: str, b: str) -> _Entry:
        found = seed_test(self.scores[a], self.scores[b], **self._how())
        return {
            "a": a,
            "b": b,
            "difference": found.estimate.value,
            "interval": self._within(found.estimate.interval, -1.0),
            "test": "seeds",
            "p": found.p_value,
            "degrees": found.degrees,
            "error": found.error,
            "seed_variance": found.seed_variance,
            "item_variance": found.item_variance,
            "lasting_variance": found.lasting_variance,
            "num_seeds": list(found.num_seeds),
        }

    def _within(self, interval: Interval, lowest: float) -> list[float]:
        """The ends of a t interval, not beyond what scores between 0 and 1 can reach."""
        if any(rows.min() < 0 or rows.max() > 1 for rows in self.scores.values()):
            return [interval.low, interval.high]
        return [max(lowest, interval.low), min(1.0, interval.high)]

    def _how(self) -> dict[str, Any]:
        return {"clusters": self.clusters, "weights": self.weights, "strata": self.strata}


def resolve_by_error(test: _Entry, num_items: int, alpha: float, power: float) -> None:
    """What a test with a standard error can detect, and the items that its difference would take.

    More items do not lower what seeds differ by: None where that alone is too much for a difference
    of the observed size.
    """
    how = {"degrees": test.get("degrees", inf), "alpha": alpha, "power": power}
    seeds = test.get("lasting_variance", 0.0)
    test["detectable"] = detectable_by_error(test["error"], **how)
    wanted = (abs(test["difference"]) / detectable_by_error(1.0, **how)) ** 2
    test["items_needed"] = None
    if wanted > seeds:
        items = num_items * (test["error"] ** 2 - seeds) / (wanted - seeds)
        test["items_needed"] = max(1, ceil(items - 1e-9))
