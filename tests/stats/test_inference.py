import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import proportion_confint

from moegraft.stats import (
    ItemBootstrap,
    bootstrap_interval,
    holm,
    mcnemar,
    noise_floor,
    two_proportion_z,
    wilson_interval,
)


def scores(num_items, rates, seed=0, agreement=0.6):
    """0/1 scores of configurations that agree on a share of the items."""
    rng = np.random.default_rng(seed)
    shared = rng.random((num_items, 1)) * np.ones(len(rates))
    own = rng.random((num_items, len(rates)))
    latent = np.where(rng.random((num_items, len(rates))) < agreement, shared, own)
    return (latent < np.array(rates)).astype(np.float64)


@pytest.mark.parametrize(("correct", "items"), [(0, 20), (7, 20), (20, 20), (340, 500)])
def test_wilson_interval_is_statsmodels_and_the_formula(correct, items):
    found = wilson_interval(correct, items)
    low, high = proportion_confint(correct, items, method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    z, p = scipy_stats.norm.ppf(0.975), correct / items
    centre = (p + z * z / (2 * items)) / (1 + z * z / items)
    half = math.sqrt(p * (1 - p) / items + z * z / (4 * items**2)) * z / (1 + z * z / items)
    assert found.half_width == pytest.approx(half, abs=1e-9)
    assert (found.low + found.high) / 2 == pytest.approx(centre, abs=1e-9)


def test_z_test_is_the_pooled_formula_and_survives_all_right_and_all_wrong():
    found = two_proportion_z(301, 500, 340, 500)
    pooled = 641 / 1000
    z = (301 - 340) / 500 / math.sqrt(pooled * (1 - pooled) * (2 / 500))
    assert found.z == pytest.approx(z)
    assert found.p == pytest.approx(2 * scipy_stats.norm.sf(abs(z)))
    assert two_proportion_z(0, 9, 0, 9).p == two_proportion_z(9, 9, 9, 9).p == 1


def test_mcnemar_is_statsmodels_exact_test_and_the_published_count_of_real_models():
    a, b = scores(400, (0.6, 0.5)).T
    found = mcnemar(a, b)
    assert found.wins + found.losses + found.ties == 400
    table = [[found.ties, found.wins], [found.losses, 0]]
    assert found.p == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue)
    # Two OpenAI models on GSM8K, 1,319 items: 152 wins, 209 losses.
    a = np.repeat([1.0, 0.0, 1.0], [152, 209, 958])
    b = np.repeat([0.0, 1.0, 1.0], [152, 209, 958])
    assert mcnemar(a, b).p == pytest.approx(0.00315, abs=5e-6)


def test_mcnemar_of_equal_columns_is_one_and_refuses_averages():
    a = scores(50, (0.5,))[:, 0]
    assert mcnemar(a, a).p == 1
    with pytest.raises(AssertionError, match="0/1"):
        mcnemar(a * 0.5, a)


def test_holm_is_the_step_down_formula_in_the_order_of_its_input():
    p_values = [0.04, 0.001, 0.03, 0.2]
    assert holm(p_values) == pytest.approx([0.09, 0.004, 0.09, 0.2])
    assert holm([]) == []


def test_bootstrap_of_a_proportion_is_scipy_percentile_bootstrap():
    outcomes = np.repeat([1.0, 0.0], [68, 32])
    found = bootstrap_interval(68, 100, seed=0)
    theirs = scipy_stats.bootstrap(
        (outcomes,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.low == pytest.approx(theirs.low, abs=0.011)  # steps of 0.01, Monte Carlo
    assert found.high == pytest.approx(theirs.high, abs=0.011)


def test_item_bootstrap_of_a_difference_is_scipy_paired_bootstrap():
    matrix = scores(300, (0.62, 0.5))
    found = ItemBootstrap.of(matrix, seed=0).difference(0, 1)
    theirs = scipy_stats.bootstrap(
        (matrix[:, 0], matrix[:, 1]),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        paired=True,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.value == pytest.approx(np.mean(matrix[:, 0] - matrix[:, 1]))
    assert found.interval.low == pytest.approx(theirs.low, abs=0.005)
    assert found.interval.high == pytest.approx(theirs.high, abs=0.005)


def test_item_bootstrap_depends_on_the_seed_and_not_on_the_order_of_items():
    matrix = scores(200, (0.6, 0.5, 0.4))
    draws = ItemBootstrap.of(matrix, seed=3).draws
    assert np.array_equal(draws, ItemBootstrap.of(matrix[::-1].copy(), seed=3).draws)
    assert not np.array_equal(draws, ItemBootstrap.of(matrix, seed=4).draws)


def test_item_bootstrap_of_continuous_scores_has_the_standard_error_of_the_mean():
    values = np.random.default_rng(0).normal(size=(400, 1))
    draws = ItemBootstrap.of(values, seed=0).draws
    assert draws.std() == pytest.approx(values.std() / 20, rel=0.03)


def test_gap_recovered_is_the_ratio_only_where_the_gap_is_established():
    matrix = scores(2000, (0.4, 0.68, 0.6, 0.4))  # host, donor, configuration, a host's twin
    bootstrap = ItemBootstrap.of(matrix, seed=0)
    found = bootstrap.gap_recovered(2, host=0, donor=1)
    host, donor, configuration, _ = matrix.mean(axis=0)
    assert found is not None
    assert found.value == pytest.approx((configuration - host) / (donor - host))
    assert found.interval.low < 0.72 < found.interval.high
    assert bootstrap.gap_recovered(2, host=0, donor=3) is None


def test_noise_floor_counts_flips_and_the_largest_difference():
    first, second = np.array([0.0, 1.0, 0.5, 1.0]), np.array([1.0, 1.0, 0.25, 1.0])
    found = noise_floor(first, second)
    assert (found.num_items, found.flips, found.max_difference) == (4, 2, 1.0)
    assert found.mean_difference == pytest.approx(0.1875)


@pytest.mark.slow
def test_holm_keeps_the_family_wise_error_where_the_raw_tests_do_not():
    """Eight equal configurations against a reference, as in one condition of a paper run."""
    raw = adjusted = 0
    num_runs = 150
    for seed in range(num_runs):
        matrix = scores(500, (0.6,) * 9, seed=seed)
        p_values = [mcnemar(matrix[:, j], matrix[:, 0]).p for j in range(1, 9)]
        raw += min(p_values) < 0.05
        adjusted += min(holm(p_values)) < 0.05
    assert adjusted / num_runs <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / num_runs)
    assert raw / num_runs > 0.08


@pytest.mark.slow
def test_the_paired_interval_covers_the_true_difference_at_its_level():
    covered, num_runs, rates = 0, 400, (0.55, 0.6)
    for seed in range(num_runs):
        bootstrap = ItemBootstrap.of(scores(300, rates, seed=seed), seed=seed, num_resamples=2000)
        interval = bootstrap.difference(1, 0).interval
        covered += interval.low <= rates[1] - rates[0] <= interval.high
    assert covered / num_runs >= 0.95 - 2.5 * math.sqrt(0.05 * 0.95 / num_runs)


@pytest.mark.slow
def test_the_unpaired_z_test_is_too_cautious_on_paired_items():
    rejected = num_runs = 0
    for seed in range(600):
        a, b = scores(500, (0.6, 0.6), seed=seed, agreement=0.8).sum(axis=0)
        rejected += two_proportion_z(int(a), 500, int(b), 500).p < 0.05
        num_runs += 1
    assert rejected / num_runs < 0.03
