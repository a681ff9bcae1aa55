from itertools import product

import numpy as np
import pytest

from moegraft.stats import paired_p, pooled_bootstrap, pooled_p


def names(prefix, num_items):
    return [f"{prefix}{place}" for place in range(num_items)]


def test_the_pooled_mean_is_the_mean_of_means_whatever_the_number_of_items():
    scores = [np.array([[1.0, 0.0]] * 3 + [[0.0, 0.0]]), np.array([[0.0, 1.0]] * 10)]
    found = pooled_bootstrap(scores, [names("x", 4), names("y", 10)], [0.5, 0.5], seed=0)
    assert found.means == pytest.approx([0.5 * 0.75, 0.5])
    assert (found.num_items, found.num_clusters) == (14, 14)
    # y never varies, and x does so by binomial draws: sd of the mean = sqrt(.75 * .25 / 4)
    assert found.draws[:, 0].std() == pytest.approx(0.5 * np.sqrt(0.1875 / 4), rel=0.03)
    assert np.all(found.draws[:, 1] == 0.5)


def test_shared_questions_are_drawn_together_and_others_are_not():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(200, 1))
    same = pooled_bootstrap([one, one], [names("q", 200)] * 2, [0.5, 0.5], seed=0)
    apart = pooled_bootstrap([one, one], [names("q", 200), names("r", 200)], [0.5, 0.5], seed=0)
    alone = one.std() / np.sqrt(200)
    assert same.draws.std() == pytest.approx(alone, rel=0.03)
    assert apart.draws.std() == pytest.approx(alone / np.sqrt(2), rel=0.03)


def test_the_pooled_p_is_that_of_all_sign_flips_weighted_by_hand():
    x, y = np.array([1.0, 0.0, 1.0, -1.0]), np.array([1.0, 1.0, 0.0])
    found = pooled_p([x, y], [["a", "b", "c", "d"], ["a", "e", "f"]], [0.6, 0.4])
    # question a is in both conditions: .15 + .1333; c and d: .15; e: .1333
    sizes = np.array([0.15 + 0.4 / 3, 0.15, -0.15, 0.4 / 3])
    flips = [abs(np.dot(signs, sizes)) for signs in product((-1, 1), repeat=4)]
    assert found == pytest.approx(np.mean(np.array(flips) >= sizes.sum() - 1e-9))


def test_a_single_condition_has_the_p_of_the_paired_test():
    rng = np.random.default_rng(1)
    a, b = rng.integers(2, size=(2, 120)).astype(float)
    found = pooled_p([a - b], [names("q", 120)], [1.0])
    assert found == pytest.approx(paired_p(a, b)[1], abs=0.02)


@pytest.mark.parametrize("num_runs", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_equal_models_differ_overall_at_the_level(num_runs):
    """Conditions of 400, 60 and 60 items, the last two asking the same questions."""
    rng = np.random.default_rng(2)
    groups = [names("x", 400), names("y", 60), names("y", 60)]
    covered = rejected = 0
    for _ in range(num_runs):
        parts = [rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=size) for size in (400, 60)]
        parts.append(np.where(rng.random(60) < 0.5, parts[1], 0.0))
        shares = [1 / 3] * 3
        how = {"seed": 0, "num_resamples": 500}
        rejected += pooled_p(parts, groups, shares, **how) < 0.05
        found = pooled_bootstrap([part[:, None] for part in parts], groups, shares, **how)
        interval = found.estimate(np.ones(1)).interval
        covered += interval.low <= 0 <= interval.high
    assert rejected / num_runs <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / num_runs)
    assert covered / num_runs >= 0.935 - 2.5 * np.sqrt(0.05 * 0.95 / num_runs)
