"""How often a report says what is not so, by simulation."""

import math
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import config

from moegraft.report.items import Run, configuration_order
from moegraft.report.summary import summarize
from moegraft.report.verdict import established, verdicts

NAMES = (
    "host",
    "donor",
    "router",
    "attention",
    "experts",
    "router+attention",
    "router+experts",
    "attention+experts",
    "router+attention+experts",
)


@pytest.fixture(autouse=True)
def without_shape_checks():
    """Other tests check shapes; here they would take half of the time."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def simulate(seed, rates, num_items=150, passage=None):
    """A run in memory; items agree between configurations on 7 of 10 items."""
    rng = np.random.default_rng(seed)
    num_groups = -(-num_items // passage) if passage else num_items
    group = np.arange(num_items) // (passage or 1)
    items = {}
    for condition in ("first", "second"):
        shared = rng.random(num_groups)
        items[condition] = {}
        for name in NAMES:
            own = rng.random(num_groups)
            latent = np.where(rng.random(num_groups) < 0.7, shared, own)[group]
            items[condition][name] = {
                str(place): {
                    "item": str(place),
                    "score": float(latent[place] < rates(condition, name)),
                    "prompt": str(place),
                    "cluster": str(group[place]) if passage else None,
                    "gold_logprob": -float(latent[place]),
                }
                for place in range(num_items)
            }
    return Run(
        path=Path("simulated"),
        env={},
        recipe={},
        finished=True,
        configurations=tuple(sorted(NAMES, key=configuration_order)),
        conditions=("first", "second"),
        items=items,
        confirm={},
        control={},
    )


def claims(summary):
    """Which kinds of claims the verdict makes that are false when all configurations are equal."""
    section = summary["subset"]
    text = " ".join(verdicts(summary))
    found = {
        "shares": "(Shapley" in text,
        "exceeds": any(winner["exceeds"] for winner in section["winners"]),
    }
    for reference in ("host", "donor"):
        tests = [cell["against"].get(reference) for cell in section["cells"]]
        found[reference] = any(established(test) for test in tests)
    assert ("it exceeds both parents (Holm" in text) is found["exceeds"]
    return found


@pytest.mark.parametrize(
    ("num_runs", "passage"),
    [
        (12, None),
        pytest.param(200, None, marks=pytest.mark.slow),
        pytest.param(200, 3, marks=pytest.mark.slow),
    ],
)
def test_each_kind_of_false_claim_is_made_in_at_most_one_run_of_twenty(
    num_runs, passage, record_property
):
    counts = dict.fromkeys(("shares", "exceeds", "host", "donor"), 0)
    for seed in range(num_runs):
        run = simulate(seed, lambda condition, name: 0.55, passage=passage)
        found = claims(summarize(run, seed=seed, num_resamples=500, write=False))
        counts = {kind: counts[kind] + made for kind, made in found.items()}
    record_property("false_claims", counts)
    limit = 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / num_runs)
    assert all(count / num_runs <= limit for count in counts.values()), counts


@pytest.mark.parametrize("num_runs", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_planted_effects_are_claimed(num_runs):
    """Experts carry 35 points of one condition, and attention adds 25 that the donor lost."""

    def rates(condition, name):
        if condition == "second":
            return 0.55
        rate = 0.2 + 0.35 * (name == "donor" or "experts" in name)
        return rate + 0.25 * ("attention" in name)

    claimed = 0
    for seed in range(num_runs):
        summary = summarize(simulate(seed, rates), seed=seed, num_resamples=500, write=False)
        (winner,) = (one for one in summary["subset"]["winners"] if one["condition"] == "first")
        text = verdicts(summary)[0]
        claimed += winner["exceeds"] and "experts +" in text
        assert winner["configuration"] in ("attention+experts", "router+attention+experts")
    assert claimed / num_runs > 0.7
