import numpy as np
import pytest

from moegraft.errors import RecipeError
from moegraft.xpert.counts import RoutingTable, Windows
from moegraft.xpert.identify import identify_experts
from moegraft.xpert.scores import SCORES, best_experts, expert_scores
from moegraft.xpert.shift import routing_shift


def table(counts, *, top_k=1, windows=(), num_shared=0, mass=None, source="m"):
    counts = np.array(counts)
    return RoutingTable(
        source=source,
        domains=tuple("abc"[: len(counts)]),
        layers=tuple(range(counts.shape[1])),
        top_k=top_k,
        num_tokens=counts.sum(axis=2)[:, 0] // top_k,
        counts=counts,
        mass=mass,
        windows=windows,
        num_shared=num_shared,
    )


def test_scores_by_hand_on_two_domains():
    use = np.array([[0.9, 0.4, 0.0], [0.1, 0.3, 0.6]])
    assert expert_scores(use, "mean") == pytest.approx([0.5, 0.35, 0.3])
    assert expert_scores(use, "a_minus_c") == pytest.approx([0.1, 0.3, 0.0])
    assert expert_scores(use, "a_minus_std") == pytest.approx([0.1, 0.3, 0.0])
    assert expert_scores(use, "min") == pytest.approx([0.1, 0.3, 0.0])


def test_deviation_is_absolute_and_standard_deviation_is_not_it():
    use = np.array([[0.0], [0.3], [0.9]])
    assert expert_scores(use, "a_minus_c")[0] == pytest.approx(0.4 - (0.4 + 0.1 + 0.5) / 3)
    assert expert_scores(use, "a_minus_std")[0] == pytest.approx(0.4 - np.sqrt(0.42 / 3))


def test_ties_go_to_the_lower_number():
    assert best_experts(np.array([[0.5, 0.7, 0.5, 0.5]]), 3).tolist() == [[1, 0, 2]]


def test_a_specialist_is_passed_over_and_domains_weigh_alike():
    # Domain a is ten times as long and loves expert 0.
    found = identify_experts(table([[[900, 60, 40]], [[5, 55, 40]]]), num_best=1)
    assert found.chosen.tolist() == [[1]]
    (layer,) = found.as_dict()["layers"]
    (best,) = layer["chosen"]
    assert best["frequency"] == {"a": 0.06, "b": 0.55}
    assert best["lowest_domain"] == "a"
    assert best["domains_above_chance"] == 0.5
    assert layer["coverage"] == {"a": 0.06, "b": 0.55}


def test_permuting_experts_permutes_the_choice():
    counts = np.random.default_rng(0).multinomial(1000, np.full(8, 1 / 8), size=(3, 4))
    order = np.random.default_rng(1).permutation(8)
    plain, moved = identify_experts(table(counts)), identify_experts(table(counts[:, :, order]))
    assert np.array_equal(plain.chosen, order[moved.chosen])


@pytest.mark.parametrize("score", SCORES)
def test_shared_experts_come_first_by_every_score(score):
    mass = np.array([[[0.4, 0.1, 0.2]], [[0.1, 0.3, 0.2]]])
    whole = table([[[5, 3, 2]], [[2, 3, 5]]], num_shared=2, mass=mass)
    found = identify_experts(whole, num_best=3, score=score)
    assert found.chosen[0, :2].tolist() == [3, 4]
    names = [expert["expert"] for expert in found.as_dict()["layers"][0]["chosen"]]
    assert names[:2] == ["shared:0", "shared:1"]
    assert (found.coverage < 1).all()


def test_routing_mass_is_another_ranking_and_needs_to_be_measured():
    counts = [[[6, 4]], [[6, 4]]]
    with pytest.raises(RecipeError, match="hold no routing mass"):
        identify_experts(table(counts), num_best=1, score="gate_mass")
    heavy = identify_experts(
        table(counts, mass=np.array([[[1.0, 3.0]]] * 2)), num_best=1, score="gate_mass"
    )
    assert heavy.chosen.tolist() == [[1]]
    assert heavy.as_dict()["layers"][0]["in_common_with"]["mean"] == 0


def windows_of(counts):
    counts = np.array(counts)
    return Windows(counts.sum(axis=2)[:, 0], counts, counts.astype(float))


def test_windows_that_agree_make_a_stable_choice_and_others_do_not():
    steady = windows_of([[[6, 3, 1]]] * 20)
    whole = table([[[120, 60, 20]]] * 2, windows=(steady, steady))
    assert identify_experts(whole, num_best=1).stability.tolist() == [[1, 0, 0]]
    torn = windows_of([[[9, 1, 0]], [[1, 9, 0]]] * 3)
    shaky = identify_experts(table([[[30, 30, 0]]] * 2, windows=(torn, torn)), num_best=1, seed=3)
    assert 0.2 < shaky.stability[0, 0] < 0.8
    assert shaky.stability.sum() == pytest.approx(1)
    again = identify_experts(table([[[30, 30, 0]]] * 2, windows=(torn, torn)), num_best=1, seed=3)
    assert np.array_equal(again.stability, shaky.stability)


def test_leaving_a_domain_out_shows_what_the_choice_hangs_on():
    found = identify_experts(table([[[50, 40, 10]], [[50, 40, 10]], [[0, 40, 60]]]), num_best=1)
    assert found.chosen.tolist() == [[1]]
    assert found.without_domain[0] == pytest.approx([1 / 3, 2 / 3, 0])
    assert identify_experts(table([[[5, 4, 1]]]), num_best=1).without_domain is None


@pytest.mark.parametrize("num_best", [0, 4])
def test_more_experts_than_there_are_is_an_error(num_best):
    with pytest.raises(RecipeError, match="has 3 experts per layer; expected a number from 1 to 3"):
        identify_experts(table([[[5, 3, 2]]]), num_best=num_best)


def test_a_shift_of_routing_is_the_total_variation_of_the_loads():
    first, second = table([[[5, 3, 2]]]), table([[[2, 3, 5]]], source="n")
    (change,) = routing_shift(first, second)
    assert change["moved"] == pytest.approx(0.3)
    assert change["in_common"] == 0
    assert change["experts"][0] == {"expert": 0, "before": 0.5, "after": 0.2}
    assert routing_shift(first, first)[0]["moved"] == 0
