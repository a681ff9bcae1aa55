import math
from itertools import product

import numpy as np
import pytest
from scipy import stats as scipy_stats

from moegraft.stats import ItemBootstrap, cluster_numbers, mcnemar, paired_test, sign_flip_p


def pairs(num_items, rates=(0.6, 0.5), seed=0, agreement=0.8):
    rng = np.random.default_rng(seed)
    shared = rng.random(num_items)
    return [
        (np.where(rng.random(num_items) < agreement, shared, rng.random(num_items)) < rate) * 1.0
        for rate in rates
    ]


def passages(num_items, size):
    return [f"passage-{place // size}" for place in range(num_items)]


def clustered_pairs(num_clusters, size, seed):
    """Equal models whose wins and losses come by passage."""
    rng = np.random.default_rng(seed)
    side = np.repeat(rng.choice([-1, 0, 1], p=[0.15, 0.7, 0.15], size=num_clusters), size)
    keep = rng.random(num_clusters * size) < 0.8
    return np.where(keep, side == 1, 0.0), np.where(keep, side == -1, 0.0)


def test_single_items_take_mcnemars_test_and_the_paired_interval():
    a, b = pairs(400)
    found = paired_test(a, b, num_resamples=2000)
    table = mcnemar(a, b)
    assert (found.kind, found.p_value) == ("mcnemar", table.p)
    assert found.discordant == (table.wins, table.losses)
    assert (found.num_items, found.num_clusters) == (400, 400)
    bootstrap = ItemBootstrap.of(np.column_stack([a, b]), seed=0, num_resamples=2000)
    theirs = bootstrap.difference(0, 1).interval
    assert found.estimate.interval.low == pytest.approx(theirs.low, abs=0.006)
    alone = paired_test(a, b, clusters=[None] * 400, num_resamples=10)
    assert (alone.kind, alone.p_value) == ("mcnemar", table.p)


def test_sign_flips_of_single_binary_items_are_mcnemars_test():
    a, b = pairs(300)
    assert sign_flip_p(a - b) == pytest.approx(mcnemar(a, b).p)
    assert sign_flip_p(np.zeros(5)) == 1


def test_sign_flips_are_the_enumeration_and_scipys_permutation_test():
    sums = np.array([2.0, -1.0, 3.0, 1.0, 1.0, 0.0, -2.0, 4.0])
    signs = np.array(list(product((-1, 1), repeat=len(sums))))
    exact = float(np.mean(np.abs(signs @ sums) >= abs(sums.sum())))
    assert sign_flip_p(sums) == pytest.approx(exact)
    assert sign_flip_p(sums / 3) == pytest.approx(exact)
    many = np.random.default_rng(0).normal(0.15, 1, size=60)
    theirs = scipy_stats.permutation_test(
        (many,), np.sum, permutation_type="samples", n_resamples=9999,
        rng=np.random.default_rng(1),
    )  # fmt: skip
    assert sign_flip_p(many) == pytest.approx(theirs.pvalue, abs=0.015)  # both Monte Carlo


def test_whole_numbers_of_any_size_are_tested_at_once():
    """Exact while their sum is moderate; token counts are resampled, not tabulated one by one."""
    sums = np.random.default_rng(0).integers(-500, 501, size=14).astype(np.float64)
    signs = np.array(list(product((-1, 1), repeat=len(sums))))
    exact = float(np.mean(np.abs(signs @ sums) >= abs(sums.sum())))
    assert sign_flip_p(sums) == pytest.approx(exact)
    assert sign_flip_p(sums * 10**9) == pytest.approx(exact, abs=0.015)  # Monte Carlo


def test_items_of_one_passage_are_one_observation():
    a, b = pairs(200)
    wide_a, wide_b = np.repeat(a, 4), np.repeat(b, 4)
    single = paired_test(a, b, num_resamples=4000)
    clustered = paired_test(wide_a, wide_b, clusters=passages(800, 4), num_resamples=4000)
    naive = paired_test(wide_a, wide_b, num_resamples=4000)
    assert (clustered.kind, clustered.num_clusters) == ("sign-flip", 200)
    assert clustered.p_value == pytest.approx(single.p_value)
    assert clustered.estimate.interval == single.estimate.interval
    assert naive.p_value < clustered.p_value
    assert naive.estimate.interval.half_width < 0.6 * single.estimate.interval.half_width


def test_continuous_scores_take_sign_flips():
    rng = np.random.default_rng(0)
    a = rng.random(80)
    found = paired_test(a + 0.05 + 0.1 * rng.normal(size=80), a, num_resamples=2000)
    assert (found.kind, found.discordant) == ("sign-flip", None)
    assert found.p_value < 0.01


def test_items_without_a_cluster_stand_alone():
    assert cluster_numbers(["a", None, "a", None], 4).tolist() == [0, 1, 0, 2]
    assert cluster_numbers(None, 3).tolist() == [0, 1, 2]


def test_both_ways_to_draw_a_resample_have_one_distribution():
    """Few distinct rows are drawn by binomials, many by items: same means, same spread."""
    few = np.repeat([[0.0], [1.0]], [120, 180], axis=0)
    jitter = few + np.linspace(0, 1e-9, 300)[:, None]
    first, second = (ItemBootstrap.of(m, seed=1, num_resamples=4000).draws for m in (few, jitter))
    assert first.mean() == pytest.approx(second.mean(), abs=0.002)
    assert first.std() == pytest.approx(second.std(), rel=0.05)


@pytest.mark.parametrize("num_runs", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_clustered_test_keeps_its_level_where_the_naive_one_does_not(num_runs):
    clustered = naive = covered = 0
    for seed in range(num_runs):
        a, b = clustered_pairs(60, 4, seed)
        found = paired_test(a, b, clusters=passages(240, 4), num_resamples=400, seed=seed)
        clustered += found.p_value < 0.05
        naive += mcnemar(a, b).p < 0.05
        covered += found.estimate.interval.low <= 0 <= found.estimate.interval.high
    slack = 2.5 * math.sqrt(0.05 * 0.95 / num_runs)
    assert clustered / num_runs <= 0.05 + slack
    assert naive / num_runs > 0.15
    assert covered / num_runs >= 0.93 - slack
