import math

import numpy as np
import pytest
from scipy.stats import false_discovery_control
from statsmodels.stats.multitest import multipletests

from moegraft.stats import ItemBootstrap, benjamini_hochberg, holm, max_t


def test_adjusted_p_are_those_of_scipy_and_statsmodels():
    p_values = np.random.default_rng(0).random(40) ** 3
    p_values[3] = p_values[7]
    assert holm(list(p_values)) == pytest.approx(multipletests(p_values, method="holm")[1])
    theirs = multipletests(p_values, method="fdr_bh")[1]
    assert benjamini_hochberg(list(p_values)) == pytest.approx(theirs)
    assert benjamini_hochberg(list(p_values)) == pytest.approx(false_discovery_control(p_values))
    assert holm([]) == benjamini_hochberg([]) == []


def test_max_t_is_the_normal_interval_for_one_contrast_and_wider_for_many():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(20_000, 20))
    alone, many = max_t(np.zeros(1), draws[:, :1]), max_t(np.zeros(20), draws)
    assert alone.critical == pytest.approx(1.96, abs=0.03)
    sidak = 3.0157  # normal quantile of (1 + .95^(1/20)) / 2
    assert many.critical == pytest.approx(sidak, abs=0.05)
    same = max_t(np.zeros(20), np.repeat(draws[:, :1], 20, axis=1))
    assert same.critical == pytest.approx(alone.critical)
    assert max_t(np.zeros(0), np.zeros((5, 0))).intervals == ()


def test_adjusted_p_and_simultaneous_intervals_agree():
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(5000, 3)) * 0.1 + [0.0, 0.25, 0.5]
    found = max_t(np.array([0.0, 0.25, 0.5]), draws)
    for interval, p in zip(found.intervals, found.p_values, strict=True):
        assert interval.excludes_zero() is (p < 0.05)


def test_a_contrast_without_a_discordant_item_keeps_a_width():
    draws = np.column_stack([np.zeros(100), np.random.default_rng(0).normal(size=100)])
    found = max_t(np.zeros(2), draws, floors=np.array([0.01, 0.01]))
    assert found.intervals[0].half_width == pytest.approx(0.01 * found.critical)
    assert found.p_values[0] == 1


def test_draws_that_never_differ_establish_nothing():
    """One item, or one answer on all of three: resamples repeat it and know no spread."""
    for num_items, low in ((1, -11.7), (3, -0.43), (6, 0.57)):
        found = max_t(
            np.array([1.0, 0.0]),
            np.tile([1.0, 0.0], (100, 1)),
            floors=np.full(2, 1 / num_items),
            degrees=max(1, num_items - 1),
        )
        assert found.intervals[0].low == pytest.approx(low, abs=0.01)
        assert found.intervals[0].excludes_zero() is (found.p_values[0] < 0.05)
        assert found.p_values[1] == 1


@pytest.mark.parametrize("num_runs", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_simultaneous_intervals_cover_all_differences_at_once(num_runs):
    covered = 0
    for seed in range(num_runs):
        rng = np.random.default_rng(seed)
        shared = rng.random((400, 1))
        rates = np.array([0.5, 0.5, 0.55, 0.6, 0.45, 0.5, 0.5, 0.7])
        own = rng.random((400, 8))
        scores = (np.where(rng.random((400, 8)) < 0.7, shared, own) < rates) * 1.0
        bootstrap = ItemBootstrap.of(scores, seed=seed, num_resamples=1000)
        contrasts = np.array([bootstrap.contrast(j, 0) for j in range(1, 8)]).T
        found = max_t(
            bootstrap.means @ contrasts, bootstrap.draws @ contrasts, floors=np.full(7, 1 / 400)
        )
        truth = rates[1:] - rates[0]
        covered += all(
            one.low <= value <= one.high for one, value in zip(found.intervals, truth, strict=True)
        )
    assert covered / num_runs >= 0.95 - 2.5 * math.sqrt(0.05 * 0.95 / num_runs)
