"""Which component carries the difference: effects over the factorial of a run, by condition."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from moegraft.report.analysis import Block, Entry, pair
from moegraft.report.families import simultaneous
from moegraft.report.items import Run, components_of, configuration_order, is_composition
from moegraft.stats import conditional_logit, effect_contrasts
from moegraft.stats.factorial import subsets

Corners = Mapping[frozenset[str], str]


def attribute(run: Run, blocks: Sequence[Block], *, gold: bool = False) -> list[Entry]:
    """Effects of every condition that has a full factorial, with simultaneous intervals.

    Args:
        run: names the configurations.
        blocks: the conditions.
        gold: of the gold answer's log-probability instead of the score. It resolves more with
            the same items and may point the way; only the score may back a claim to ship.
    """
    components, corners = factorial_of(run)
    entries, contrasts = [], []
    for block in blocks:
        places = _places(block, components, corners)
        if places is None or block.bootstrap is None or (gold and not block.gold):
            continue
        shift = len(block.paired) if gold else 0
        columns = {part: place + shift for part, place in places.items()}
        size = len(block.bootstrap.means)
        floor = 0.0 if gold else 1 / block.bootstrap.num_clusters
        for (kind, names), weights in effect_contrasts(components, columns, size).items():
            estimate = block.bootstrap.estimate(weights)
            entry: Entry = {"condition": block.condition, "kind": kind, "components": list(names)}
            entry |= {"value": estimate.value, "interval": pair(estimate)}
            entries.append(entry)
            contrasts.append((entry, block, weights, floor))
    simultaneous(contrasts)
    return entries


def log_odds(run: Run, blocks: Sequence[Block]) -> list[Entry]:
    """Conditional logit by item over the factorial: main effects and two-way interactions."""
    components, corners = factorial_of(run)
    entries: list[Entry] = []
    for block in blocks:
        places = _places(block, components, corners)
        if places is None or not block.binary:
            continue
        terms = [frozenset(names) for size in (1, 2) for names in combinations(components, size)]
        parts = subsets(components)
        design = np.array(
            [[np.prod([0.5 if c in part else -0.5 for c in term]) for term in terms]
             for part in parts]
        )  # fmt: skip
        scores = block.matrix()[:, [places[part] for part in parts]]
        fit = conditional_logit(scores, design, clusters=block.clusters)
        entry: Entry = {"condition": block.condition, "terms": None, "num_informative": 0}
        if fit is not None:
            entry["num_informative"] = fit.num_informative
            entry["terms"] = [
                {
                    "components": sorted(term, key=components.index),
                    "log_odds": float(fit.coefficients[place]),
                    "error": float(fit.errors[place]),
                    "p": float(fit.p_values[place]),
                }
                for place, term in enumerate(terms)
            ]
        entries.append(entry)
    return entries


def factorial_of(run: Run) -> tuple[list[str], Corners]:
    """Components of the largest full factorial among a run's configurations, and its corners."""
    corners = {
        frozenset(components_of(name)): name for name in filter(is_composition, run.configurations)
    }
    whole = frozenset[str]().union(*corners)
    if "rest" in whole and "donor" in run.configurations:
        corners.setdefault(whole, "donor")  # every component and the rest: the donor itself
    full = [corner for corner in corners if all(part in corners for part in subsets(list(corner)))]
    return sorted(max(full, key=len, default=()), key=configuration_order), corners


def _places(
    block: Block, components: Sequence[str], corners: Corners
) -> dict[frozenset[str], int] | None:
    needed = subsets(components)
    if not components or any(corners[part] not in block.paired for part in needed):
        return None
    return {part: block.paired.index(corners[part]) for part in needed}
