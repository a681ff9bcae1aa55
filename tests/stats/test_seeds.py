import math

import numpy as np
import pytest

from moegraft.stats import mcnemar, seed_mean, seed_test
from moegraft.stats.seeds import paired_seed_test


def arms(num_seeds, num_items, spread, rng, gain=0.0):
    """Two recipes whose seeds differ by `spread` in accuracy, on items of varied difficulty."""
    difficulty = rng.normal(0.5, 0.2, size=num_items)
    found = []
    for recipe_gain in (gain, 0.0):
        level = rng.normal(0, spread, size=(num_seeds, 1)) + recipe_gain
        found.append((rng.random((num_seeds, num_items)) < difficulty + level) * 1.0)
    return found


def test_a_planted_gain_is_found_and_both_variances_are_told():
    rng = np.random.default_rng(0)
    found = seed_test(*arms(5, 2000, 0.01, rng, gain=0.1))
    assert found.estimate.interval.low < 0.1 < found.estimate.interval.high
    assert found.p_value < 0.001
    assert found.num_seeds == (5, 5)
    assert found.seed_variance > 0 and found.item_variance > 0


def test_more_items_do_not_help_where_seeds_differ():
    rng = np.random.default_rng(0)
    few, many = (seed_test(*arms(3, size, 0.05, rng)) for size in (500, 20_000))
    assert many.item_variance < 0.1 * few.item_variance
    assert many.estimate.interval.half_width > 0.03


def test_a_single_seed_is_our_own_mistake():
    with pytest.raises(AssertionError, match="single seed"):
        seed_test(np.zeros((1, 5)), np.zeros((2, 5)))


def test_equal_scores_have_no_width():
    found = seed_test(np.ones((2, 5)), np.ones((3, 5)))
    assert (found.estimate.value, found.p_value) == (0.0, 1.0)


@pytest.mark.parametrize("num_runs", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_equal_recipes_differ_at_the_level_only_if_seeds_are_counted(num_runs):
    rng = np.random.default_rng(1)
    both = naive = 0
    for _ in range(num_runs):
        a, b = arms(3, 1000, 0.03, rng)
        both += seed_test(a, b).p_value < 0.05
        naive += mcnemar(a[0], b[0]).p < 0.05
    assert both / num_runs <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / num_runs)
    assert naive / num_runs > 0.15


def test_what_more_items_leave_of_the_seeds_variance_is_what_seeds_differ_by():
    """Three seeds a recipe, true spread .05: the variance of a difference is 2 x .05^2 / 3."""
    rng = np.random.default_rng(4)
    found = [seed_test(*arms(3, 2000, 0.05, rng)).lasting_variance for _ in range(80)]
    assert np.mean(found) == pytest.approx(2 * 0.05**2 / 3, rel=0.25)
    none = [seed_test(*arms(3, 400, 0.0, rng)) for _ in range(80)]
    lasting, seeds = (np.mean([getattr(one, key) for one in none]) for key in
                      ("lasting_variance", "seed_variance"))  # fmt: skip
    assert lasting < 0.6 * seeds  # cut at 0, so not 0 on average


def test_pooled_conditions_count_by_their_weights_and_not_by_their_items():
    """Two conditions of 18 items and 6 items, weighted equally: worked out by hand."""
    a = np.tile([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]], 8)
    b = np.tile([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], 8)
    b[:, 18:] = np.tile([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]], 2)
    weights, strata = np.array([1 / 36] * 18 + [1 / 12] * 6), ("x",) * 18 + ("y",) * 6
    found = seed_test(a, b, weights=weights, strata=strata)
    # means over seeds: a = (1, .5, .5), b = (.5, .5, 0) in x and (.5, .5, 0) in y
    assert found.estimate.value == pytest.approx(1 / 3)
    # seeds of a: 2/3 both; of b: 1/3 in x both, 2/3 and 0 in y: 1/2 and 1/6, variance 1/18, halved
    assert found.seed_variance == pytest.approx(1 / 36)
    # differences (.5, 0, .5) deviate by 1/6, -1/3, 1/6 from 1/3 in both conditions
    spread = np.tile([1 / 6, -1 / 3, 1 / 6], 8) * weights
    assert found.item_variance == pytest.approx(np.sum(spread**2) * 24 / 23)
    assert seed_mean(a, weights=weights, strata=strata).value == pytest.approx(2 / 3)


def test_a_recipe_that_is_ahead_on_every_item_needs_more_than_a_few():
    """A variance of 0 over few items is no proof: as single checkpoints, six items it takes."""
    for num_items, p in ((1, 1.0), (3, 1 / 4), (5, 1 / 16), (6, 1 / 32)):
        ones, zeros = np.ones((2, num_items)), np.zeros((3, num_items))
        found = seed_test(ones, zeros)
        assert found.p_value == pytest.approx(max(p, mcnemar(ones[0], zeros[0]).p))
        assert found.error == pytest.approx(1 / num_items)
    nearly = seed_test(np.array([[1.0, 1, 1, 1, 0]] * 2), np.zeros((2, 5)))
    assert nearly.p_value == pytest.approx(1 / 8)


def test_paired_seeds_do_not_count_what_a_seed_does_to_both():
    rng = np.random.default_rng(0)
    items, seeds = rng.normal(size=40), rng.normal(size=(4, 1))
    a = items + 5 * seeds + 0.01 * rng.normal(size=(4, 40))
    b = items + 5 * seeds + 0.1 + 0.01 * rng.normal(size=(4, 40))
    estimate, p = paired_seed_test(b - a)
    assert estimate.value == pytest.approx(0.1, abs=0.01)
    assert p < 1e-4 < seed_test(b, a).p_value
    assert estimate.interval.low < 0.1 < estimate.interval.high
