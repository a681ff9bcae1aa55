"""One condition of a run: its cells as arrays, their estimates, and their tests against parents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from moegraft.report.items import (
    Row,
    Run,
    align,
    configuration_order,
    finished_cells,
    mean_of,
    num_repeats,
)
from moegraft.stats import (
    Equivalence,
    Estimate,
    ItemBootstrap,
    cluster_numbers,
    equivalence,
    minimum_detectable,
    paired_p,
    resolvable_margin,
    two_proportion_z,
    wilson_interval,
)
from moegraft.stats.inference import NUM_RESAMPLES, is_binary
from moegraft.stats.power import POWER, items_for_margin

REFERENCES = ("host", "donor")
"""Every configuration is tested against each of these; each is one family of tests."""
MATCH_MARGIN = 0.01
"""Two configurations match when they are shown to differ by less than this, one point."""
ALPHA = 0.05

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides the random numbers of a summary."""

    seed: int = 0
    num_resamples: int = NUM_RESAMPLES


@dataclass(frozen=True, slots=True)
class Block:
    """The finished cells of one condition, aligned by item."""

    condition: str
    items: tuple[str, ...]
    clusters: tuple[str | None, ...] | None
    """What items share; None where each stands alone."""
    scores: Mapping[str, Float[np.ndarray, "item"]]
    """By configuration, also of those whose prompts are their own."""
    paired: tuple[str, ...]
    """Configurations that were asked the same prompts; columns of the bootstrap, in order."""
    gold: bool
    """Whether the bootstrap holds the gold log-probabilities too, after the scores."""
    binary: bool
    bootstrap: ItemBootstrap | None
    """None where no cell is finished."""

    def matrix(self) -> Float[np.ndarray, "item configuration"]:
        """Scores of the paired configurations."""
        return np.column_stack([self.scores[name] for name in self.paired])


def read_block(
    run: Run,
    condition: str,
    cells: Mapping[str, Mapping[str, Row]],
    limit: int | None,
    settings: Settings,
) -> Block:
    """Align the finished cells of a condition and resample their items once.

    Raises:
        RunError: one item had different prompts under configurations that should be paired.
    """
    names, items = finished_cells(cells, limit)
    unpaired = set(run.env.get("unpaired_configurations", []))
    rows = {name: {item: cells[name][item] for item in items} for name in names}
    paired = [name for name in names if name not in unpaired]
    scores = {name: align(run, condition, {name: rows[name]}, items)[:, 0] for name in names}
    matrix = align(run, condition, {name: rows[name] for name in paired}, items)
    clusters = _clusters(rows[names[0]], items) if names else None
    gold = _gold({name: rows[name] for name in paired}, items)
    columns = matrix if gold is None else np.hstack([matrix, gold])
    return Block(
        condition=condition,
        items=tuple(items),
        clusters=clusters,
        scores=scores,
        paired=tuple(paired),
        gold=gold is not None,
        binary=num_repeats(run, condition) == 1 and all(map(is_binary, scores.values())),
        bootstrap=ItemBootstrap.of(
            columns, seed=settings.seed, num_resamples=settings.num_resamples, clusters=clusters
        )
        if items and paired
        else None,
    )


def describe_cells(
    block: Block, cells: Mapping[str, Mapping[str, Row]], settings: Settings
) -> list[Entry]:
    """One entry per cell, finished or not, with its tests before any correction."""
    entries = []
    for name in sorted(cells, key=configuration_order):
        finished = name in block.scores
        kept = [cells[name][item] for item in block.items] if finished else [*cells[name].values()]
        entry = _describe(name, block.condition, kept)
        entry |= {"finished": finished, "paired": name in block.paired}
        if finished and block.bootstrap is not None:
            entry["against"] = _against(name, block, settings)
            entry |= _place(name, block, settings)
        entries.append(entry)
    return entries


def describe_condition(block: Block, num_tests: int) -> Entry:
    """Size of a condition, and what so many items can resolve.

    Args:
        block: the condition.
        num_tests: of the larger family that its tests belong to.
    """
    about: Entry = {
        "name": block.condition,
        "num_items": len(block.items),
        "num_clusters": block.bootstrap.num_clusters if block.bootstrap else len(block.items),
        "binary": block.binary,
        "resolution": None,
    }
    others = [name for name in block.paired if name != "host"]
    if "host" not in block.paired or not others or not block.items:
        return about
    found = [_spread(block.scores[name] - block.scores["host"], block.clusters) for name in others]
    discordance, effect = (float(np.mean(part)) for part in zip(*found, strict=True))
    if discordance > 1:  # scores beyond [0, 1]: power formulas for shares do not apply
        return about
    power: Any = {"design_effect": max(1.0, effect)}
    count = len(block.items)
    about["resolution"] = {
        "discordance": discordance,
        "design_effect": effect,
        "minimum_detectable": minimum_detectable(count, discordance, **power),
        "minimum_detectable_adjusted": minimum_detectable(
            count, discordance, alpha=ALPHA / max(1, num_tests), **power
        ),
        "num_tests": num_tests,
        "margin": resolvable_margin(count, discordance, **power),
        "items_to_match": items_for_margin(
            MATCH_MARGIN, discordance, power=(1 + POWER) / 2, **power
        ),
        "match_margin": MATCH_MARGIN,
    }
    return about


def pair(estimate: Estimate) -> list[float]:
    """The ends of an interval, as JSON wants them."""
    return [estimate.interval.low, estimate.interval.high]


def paired_tests(
    a: Float[np.ndarray, "item"],
    b: Float[np.ndarray, "item"],
    clusters: Sequence[str | None] | None,
    settings: Settings,
) -> Entry:
    """Paired p and equivalence of two configurations, not yet adjusted."""
    kind, p = paired_p(
        a, b, clusters=clusters, num_resamples=settings.num_resamples, seed=settings.seed
    )
    return {"test": kind, "p": p, "p_holm": None, "match": _match(a, b, clusters)}


def _match(
    a: Float[np.ndarray, "item"],
    b: Float[np.ndarray, "item"],
    clusters: Sequence[str | None] | None,
) -> Entry:
    found: Equivalence = equivalence(a, b, MATCH_MARGIN, clusters=clusters, alpha=ALPHA)
    low, high = pair(found.estimate)
    return {
        "margin": MATCH_MARGIN,
        "interval": [low, high],
        "within": max(abs(low), abs(high)),
        "p": found.p_value,
        "p_holm": None,
    }


def _describe(configuration: str, condition: str, rows: Sequence[Row]) -> Entry:
    values = [float(row["score"]) for row in rows]
    names = sorted({name for row in rows for name in row.get("scores") or {}})
    secondary = {name: mean_of((row.get("scores") or {} for row in rows), name) for name in names}
    binary = bool(values) and is_binary(np.array(values))
    wilson = wilson_interval(int(sum(values)), len(values)) if binary else None
    return {
        "configuration": configuration,
        "condition": condition,
        "num_items": len(values),
        "num_correct": int(sum(values)) if binary else None,
        "score": float(np.mean(values)) if values else None,
        "wilson": [wilson.low, wilson.high] if wilson else None,
        "bootstrap": None,
        "scores": secondary,
        "gold_logprob": mean_of(rows, "gold_logprob"),
        "gold_interval": None,
        "mean_tokens": mean_of(rows, "num_tokens"),
        "truncated": mean_of(rows, "truncated"),
        "looped": mean_of(rows, "looped"),
        "against": {},
        "gap_recovered": None,
    }


def _place(name: str, block: Block, settings: Settings) -> Entry:
    """Intervals of a cell's own means, and the share of the gap that it recovers."""
    bootstrap, paired = block.bootstrap, block.paired
    assert bootstrap is not None
    if name not in paired:
        alone = ItemBootstrap.of(
            block.scores[name][:, None],
            seed=settings.seed,
            num_resamples=settings.num_resamples,
            clusters=block.clusters,
        )
        return {"bootstrap": pair(alone.estimate(np.ones(1)))}
    column = paired.index(name)
    own = np.zeros(len(bootstrap.means))
    own[column] = 1.0
    found: Entry = {"bootstrap": pair(bootstrap.estimate(own))}
    if block.gold:
        found["gold_interval"] = pair(bootstrap.estimate(np.roll(own, len(paired))))
    if name not in REFERENCES and set(REFERENCES) <= set(paired):
        gap = bootstrap.gap_recovered(column, paired.index("host"), paired.index("donor"))
        found["gap_recovered"] = {"value": gap.value, "interval": pair(gap)} if gap else None
    return found


def _against(name: str, block: Block, settings: Settings) -> Entry:
    """Tests of one cell against host and donor; paired ones only between equal prompts."""
    found = {}
    assert block.bootstrap is not None
    for reference in (other for other in REFERENCES if other in block.scores and other != name):
        a, b = block.scores[name], block.scores[reference]
        entry: Entry = {"num_pairs": len(a), "difference": float(np.mean(a) - np.mean(b))}
        entry |= {"z": None, "z_p": None, "interval": None, "simultaneous": None}
        entry |= {"test": None, "p": None, "p_holm": None, "p_bh": None, "p_max_t": None}
        entry |= {"wins": None, "losses": None, "ties": None, "match": None}
        if block.binary:
            test = two_proportion_z(int(a.sum()), len(a), int(b.sum()), len(b))
            entry |= {"z": test.z, "z_p": test.p}
        if {name, reference} <= set(block.paired):
            places = block.paired.index(name), block.paired.index(reference)
            entry["interval"] = pair(block.bootstrap.difference(*places))
            entry |= paired_tests(a, b, block.clusters, settings)
            if block.binary:
                entry |= {"wins": int(np.sum(a > b)), "losses": int(np.sum(a < b))}
                entry["ties"] = int(np.sum(a == b))
            else:
                entry["test"] = "sign-flip"
        found[reference] = entry
    return found


def _clusters(rows: Mapping[str, Row], items: Sequence[str]) -> tuple[str | None, ...] | None:
    names = tuple(rows[item].get("cluster") for item in items)
    known = [name for name in names if name is not None]
    return names if len(set(known)) < len(known) else None


def _gold(
    rows: Mapping[str, Mapping[str, Row]], items: Sequence[str]
) -> Float[np.ndarray, "item configuration"] | None:
    columns = [[cells[item].get("gold_logprob") for item in items] for cells in rows.values()]
    if not columns or any(value is None for column in columns for value in column):
        return None
    return np.array(columns, dtype=np.float64).T


def _spread(
    difference: Float[np.ndarray, "item"], clusters: Sequence[str | None] | None
) -> tuple[float, float]:
    """Mean square of a paired difference (the discordance of 0/1 scores), and design effect."""
    centred = difference - difference.mean()
    alone = float(np.sum(centred**2))
    together = np.bincount(cluster_numbers(clusters, len(centred)), weights=centred)
    effect = float(np.sum(together**2)) / alone if alone else 1.0
    return float(np.mean(difference**2)), effect
