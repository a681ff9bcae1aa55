import time
from itertools import permutations

import numpy as np
import pytest

from moegraft.stats import (
    ItemBootstrap,
    effect_contrasts,
    effect_weights,
    factorial_effects,
)
from moegraft.stats.factorial import subsets

COMPONENTS = ("router", "attention", "experts")


def value(subset):
    """Main effects 1, 2, 4; attention and experts give 8 more together."""
    table = {"router": 1.0, "attention": 2.0, "experts": 4.0}
    bonus = 8.0 if {"attention", "experts"} <= subset else 0.0
    return sum(table[name] for name in subset) + bonus


def combine(kind, names):
    configurations = subsets(COMPONENTS)
    weights = effect_weights(COMPONENTS, configurations)[kind, names]
    return float(weights @ np.array([value(subset) for subset in configurations]))


def test_effects_of_a_known_table():
    assert combine("main", ("router",)) == pytest.approx(1)
    assert combine("main", ("attention",)) == pytest.approx(2 + 8 / 2)
    assert combine("interaction", ("attention", "experts")) == pytest.approx(8)
    assert combine("interaction", ("router", "experts")) == pytest.approx(0)
    assert combine("interaction", COMPONENTS) == pytest.approx(0)


def test_shapley_is_the_mean_over_all_orders_and_adds_up():
    total = 0.0
    for name in COMPONENTS:
        gains = []
        for order in permutations(COMPONENTS):
            before = frozenset(order[: order.index(name)])
            gains.append(value(before | {name}) - value(before))
        assert combine("shapley", (name,)) == pytest.approx(np.mean(gains))
        total += combine("shapley", (name,))
    assert total == pytest.approx(value(frozenset(COMPONENTS)))


def test_four_components_give_fifteen_effects_and_four_shapley_values():
    components = (*COMPONENTS, "rest")
    weights = effect_weights(components, subsets(components))
    assert sum(kind == "shapley" for kind, _ in weights) == 4
    assert sum(kind != "shapley" for kind, _ in weights) == 15
    assert all(abs(vector.sum()) < 1e-12 for vector in weights.values())


def test_an_incomplete_factorial_is_our_own_mistake():
    with pytest.raises(AssertionError, match="full factorial"):
        effect_weights(COMPONENTS, subsets(COMPONENTS)[:-1])


def test_planted_effects_are_recovered_within_their_intervals():
    rng = np.random.default_rng(0)
    latent = rng.random(4000)
    configurations = subsets(COMPONENTS)
    columns = {subset: place + 1 for place, subset in enumerate(configurations)}
    matrix = np.zeros((4000, 9))  # column 0 stands for a donor that is no part of the factorial
    for subset, place in columns.items():
        rate = 0.4 + 0.2 * ("experts" in subset) + 0.05 * ({"router", "attention"} <= subset)
        noisy = np.where(rng.random(4000) < 0.2, rng.random(4000), latent)
        matrix[:, place] = noisy < rate
    effects = factorial_effects(ItemBootstrap.of(matrix, seed=0), COMPONENTS, columns)
    found = {(effect.kind, effect.components): effect.estimate for effect in effects}
    planted = {
        ("main", ("experts",)): 0.2,
        ("main", ("router",)): 0.025,
        ("interaction", ("router", "attention")): 0.05,
        ("interaction", ("router", "experts")): 0.0,
        ("shapley", ("attention",)): 0.025,
    }
    for key, truth in planted.items():
        assert found[key].interval.low <= truth <= found[key].interval.high, key
    assert found["main", ("experts",)].interval.low > 0.15


def test_per_item_contrasts_are_the_effects():
    rng = np.random.default_rng(0)
    matrix = (rng.random((300, 8)) < 0.5) * 1.0
    columns = {subset: place for place, subset in enumerate(subsets(COMPONENTS))}
    bootstrap = ItemBootstrap.of(matrix, seed=0, num_resamples=500)
    contrasts = effect_contrasts(COMPONENTS, columns, 8)
    for effect in factorial_effects(bootstrap, COMPONENTS, columns):
        per_item = matrix @ contrasts[effect.kind, effect.components]
        assert effect.estimate.value == pytest.approx(per_item.mean())
        error = per_item.std() / np.sqrt(300)
        assert effect.estimate.interval.half_width == pytest.approx(1.96 * error, rel=0.15)


def paper_condition(num_items, seed, passages):
    """Scores and gold log-probabilities of nine configurations."""
    rng = np.random.default_rng(seed)
    latent = np.where(rng.random((num_items, 9)) < 0.8, rng.random((num_items, 1)), 0.5)
    scores = (latent + 0.1 * rng.random((num_items, 9)) < 0.6) * 1.0
    gold = -10 * latent - rng.random((num_items, 9))
    clusters = [str(place // passages) for place in range(num_items)]
    return np.hstack([scores, gold]), clusters if passages > 1 else None


def test_a_full_paper_run_is_attributed_in_seconds():
    """Four conditions in full, 10,000 resamples, score and gold log-probability: about 1.5 s alone
    on a core of 2024; the bound leaves room for a busy machine."""
    prepared = [paper_condition(size, size, size // 1600 + 1) for size in (3270, 1319, 1172, 1171)]
    start = time.process_time()
    for matrix, clusters in prepared:
        bootstrap = ItemBootstrap.of(matrix, seed=0, clusters=clusters)
        for shift in (0, 9):
            columns = {part: shift + place for place, part in enumerate(subsets(COMPONENTS))}
            found = factorial_effects(bootstrap, COMPONENTS, columns)
            assert len(found) == 10
    seconds = time.process_time() - start
    assert seconds < 8
