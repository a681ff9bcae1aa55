import numpy as np
import pytest

from moegraft.stats import (
    items_for_margin,
    items_needed,
    mcnemar,
    minimum_detectable,
    noninferiority,
    resolvable_margin,
)


def draw(num_items, wins, losses, rng):
    a, b, rest = rng.multinomial(num_items, [wins, losses, 1 - wins - losses])
    return np.repeat([1.0, 0.0, 1.0], [a, b, rest]), np.repeat([0.0, 1.0, 1.0], [a, b, rest])


def test_margins_that_known_benchmarks_can_carry():
    assert resolvable_margin(541, 0.1) == pytest.approx(0.034, abs=0.0005)  # IFEval
    assert resolvable_margin(1319, 0.1) == pytest.approx(0.022, abs=0.0005)  # GSM8K
    assert resolvable_margin(0, 0.1) == 1


def test_items_and_differences_are_inverse():
    for num_items, discordance in ((200, 0.2), (1319, 0.1), (3270, 0.3)):
        found = minimum_detectable(num_items, discordance)
        assert items_needed(found, discordance) == pytest.approx(num_items, abs=1)
        margin = resolvable_margin(num_items, discordance)
        assert items_for_margin(margin, discordance) == pytest.approx(num_items, abs=1)


def test_clusters_and_correction_raise_what_is_needed():
    plain = minimum_detectable(500, 0.2)
    assert minimum_detectable(500, 0.2, design_effect=2.0) == minimum_detectable(250, 0.2) > plain
    assert minimum_detectable(500, 0.2, alpha=0.05 / 32) > plain
    assert items_needed(0.05, 0.2, design_effect=2.0) == pytest.approx(
        2 * items_needed(0.05, 0.2), abs=1
    )


def test_a_loss_as_large_as_the_margin_takes_infinitely_many_items():
    assert items_for_margin(0.02, 0.1, difference=-0.02) is None
    assert items_for_margin(0.02, 0.1, difference=-0.01) > items_for_margin(0.02, 0.1)


def test_few_items_detect_nothing():
    assert minimum_detectable(1, 0.1) == 1
    assert minimum_detectable(10, 0.02) > 0.02


@pytest.mark.parametrize("num_runs", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_the_promised_power_is_what_the_exact_tests_have(num_runs):
    """Exact tests are a little less powerful than the normal formula: 80 % becomes 73-83 %."""
    rng = np.random.default_rng(0)
    difference = minimum_detectable(500, 0.2)
    rates = (0.2 + difference) / 2, (0.2 - difference) / 2
    found = sum(mcnemar(*draw(500, *rates, rng)).p < 0.05 for _ in range(num_runs))
    assert 0.66 <= found / num_runs <= 0.92
    margin = resolvable_margin(500, 0.1)
    passed = sum(
        noninferiority(*draw(500, 0.05, 0.05, rng), margin).verdict == "pass"
        for _ in range(num_runs)
    )
    assert 0.66 <= passed / num_runs <= 0.92
