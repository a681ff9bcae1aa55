"""Do a router and experts of one parent work better together? Losses of the four pairings."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float

from moegraft.report.words import p_value
from moegraft.stats.bootstrap import ItemBootstrap
from moegraft.stats.inference import Estimate
from moegraft.stats.paired import paired_p
from moegraft.sweep.design import DONOR, canonical_name
from moegraft.transfer.recipe import HOST

PARENTS = (HOST, DONOR)
ALL = "all"
"""All conditions, each with equal weight."""

_LEVEL = 0.05

PAIRINGS = ((HOST, HOST), (DONOR, HOST), (HOST, DONOR), (DONOR, DONOR))
"""(router's parent, experts' parent)."""

CONTRASTS = {
    "router_on_host_experts": (-1.0, 1.0, 0.0, 0.0),
    "router_on_donor_experts": (0.0, 0.0, -1.0, 1.0),
    "mismatch": (-0.5, 0.5, 0.5, -0.5),
}
"""Weights of the four losses: what the donor's router adds with either parent's experts, and what
a router with experts of the other parent costs against one with experts of its own."""

Losses = Mapping[str, Float[np.ndarray, "_text"]]
"""Nats per token of each text, by configuration."""


def configuration_of(router: str, experts: str, others: str) -> str:
    """The name of the configuration whose components come from these parents."""
    origin = {"router": router, "experts": experts, "attention": others, "rest": others}
    taken = [component for component, parent in origin.items() if parent == DONOR]
    return DONOR if len(taken) == len(origin) else canonical_name(taken)


def pairings(others: str) -> dict[tuple[str, str], str]:
    """The configurations of the four pairings, everything else from the parent `others`."""
    return {pair: configuration_of(*pair, others) for pair in PAIRINGS}


def coadaptation(
    losses: Mapping[str, Losses],
    clusters: Mapping[str, Sequence[str | None]],
    overlaps: Mapping[tuple[str, str], Sequence[Sequence[float]]],
    *,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The 2 x 2 of router and experts, by what surrounds them and by condition.

    Intervals are percentile intervals of the paired bootstrap over texts (over clusters where
    texts share something), p values those of the paired sign-flip test; neither is adjusted for
    their number.

    Args:
        losses: by condition, of all configurations that `pairings` names.
        clusters: by condition, what each text shares with others.
        overlaps: by (configuration, parent), top-k overlap by condition and layer.
        seed: of bootstrap and test.

    Returns:
        JSON-ready entries: `others condition num_texts cells` and each of `CONTRASTS`; the first
        condition is `all`, where every condition has equal weight.
    """
    found = []
    for others, condition in product(PARENTS, (ALL, *losses)):
        names = pairings(others)
        if not all(name in own for own in losses.values() for name in names.values()):
            continue
        columns, shared = _columns(losses, clusters, condition, list(names.values()))
        bootstrap = ItemBootstrap.of(columns, seed=seed, clusters=shared)
        place = None if condition == ALL else list(losses).index(condition)
        entry: dict[str, Any] = {
            "others": others,
            "condition": condition,
            "num_texts": len(columns),
            "cells": list(_cells(names, bootstrap, overlaps, place, others)),
        }
        for name, weights in CONTRASTS.items():
            signed = np.array(weights)
            entry[name] = _as_dict(bootstrap.estimate(signed)) | {
                "p": _p(columns, signed, shared, seed)
            }
        found.append(entry)
    return found


def sentences(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the four pairings say over all conditions, in words."""
    said = []
    for entry in entries:
        if entry["condition"] != ALL:
            continue
        whose = f"Everything else the {entry['others']}'s: "
        alone, own, mismatch = (entry[name] for name in CONTRASTS)
        said.append(
            f"{whose}with the host's experts the donor's router {_effect(alone)}; "
            f"with the donor's experts it {_effect(own)}."
        )
        low, high = mismatch["interval"]
        size = f"{abs(mismatch['value']):.3f} nats per token {_interval(mismatch)}"
        p = p_value(mismatch["p"])
        shown = mismatch["p"] < _LEVEL  # an interval of a few texts is narrower than its error
        if low > 0 and shown:
            verdict = f"costs {size}, {p}: router and experts are co-adapted."
        elif high < 0 and shown:
            verdict = f"gains {size}, {p}: there is no co-adaptation here."
        else:
            verdict = (
                f"costs {mismatch['value']:+z.3f} nats per token [{low:z.3f}, {high:z.3f}], {p}: "
                "co-adaptation is not established."
            )
        said.append(f"{whose}pairing a router with the other parent's experts {verdict}")
    return said


def _columns(
    losses: Mapping[str, Losses],
    clusters: Mapping[str, Sequence[str | None]],
    condition: str,
    names: Sequence[str],
) -> tuple[Float[np.ndarray, "text cell"], list[str | None]]:
    """Losses of the four pairings; for all conditions weighted so that their mean is the macro."""
    if condition != ALL:
        own = losses[condition]
        return np.column_stack([own[name] for name in names]), list(clusters[condition])
    sizes = {key: len(own[names[0]]) for key, own in losses.items()}
    total, parts = sum(sizes.values()), []
    for key, own in losses.items():
        weight = total / (len(sizes) * sizes[key])
        parts.append(weight * np.column_stack([own[name] for name in names]))
    return np.concatenate(parts), [name for key in losses for name in clusters[key]]


def _cells(
    names: Mapping[tuple[str, str], str],
    bootstrap: ItemBootstrap,
    overlaps: Mapping[tuple[str, str], Sequence[Sequence[float]]],
    place: int | None,
    others: str,
) -> Iterator[dict[str, Any]]:
    """Loss of each pairing, also against the pure parent, and how it follows its experts' parent.

    `followed`: the share of expert choices that the parent of the experts would have made.
    """
    base = list(names).index((others, others))
    for column, ((router, experts), configuration) in enumerate(names.items()):
        difference = np.zeros(len(names))
        difference[column] += 1
        difference[base] -= 1
        if configuration == experts:
            followed = 1.0
        else:
            rows = overlaps[configuration, experts]
            followed = float(np.mean(rows if place is None else rows[place]))
        yield {
            "router": router,
            "experts": experts,
            "configuration": configuration,
            "loss": float(bootstrap.means[column]),
            "difference": _as_dict(bootstrap.estimate(difference)),
            "followed": followed,
        }


def _p(
    columns: Float[np.ndarray, "text cell"],
    weights: Float[np.ndarray, "cell"],
    clusters: Sequence[str | None],
    seed: int,
) -> float:
    plus, minus = columns @ np.maximum(weights, 0), columns @ np.maximum(-weights, 0)
    return paired_p(plus, minus, clusters=clusters, seed=seed)[1]


def _as_dict(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": estimate.value,
        "interval": [estimate.interval.low, estimate.interval.high],
    }


def _effect(contrast: Mapping[str, Any]) -> str:
    low, high = contrast["interval"]
    size = f"{abs(contrast['value']):.3f} nats per token {_interval(contrast)}"
    if low > 0:
        return f"raises the loss by {size}"
    if high < 0:
        return f"lowers the loss by {size}"
    return f"has no established effect ({contrast['value']:+z.3f} {_interval(contrast)})"


def _interval(contrast: Mapping[str, Any]) -> str:
    low, high = contrast["interval"]
    if contrast["value"] < 0 and high < 0:
        low, high = -high, -low
    return f"[{low:z.3f}, {high:z.3f}]"
