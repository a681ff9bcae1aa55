import math

import numpy as np
import pytest

from moegraft.stats import mcnemar, seed_test


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
