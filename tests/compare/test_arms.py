"""Training recipes of several seeds: known answers, and what is refused."""

import numpy as np
import pytest
from scipy.stats import t

from moegraft.compare.results import Paired, Pairing
from moegraft.compare.table import compare
from moegraft.errors import ResultsError
from moegraft.stats import seed_test

SEEDS = {"sft": ("s1", "s2", "s3"), "dpo": ("d1", "d2")}


def pairing(conditions, left_out=None):
    """Paired scores, `{"math": {"s1": [...], ...}}`."""
    paired = []
    for name, scores in conditions.items():
        columns = np.array(list(scores.values()), dtype=np.float64).T
        items = tuple(f"{name}{place:04d}" for place in range(len(columns)))
        models = tuple(scores)
        paired.append(Paired(name, models, items, columns, None, "equal", left_out or {}))
    return Pairing(models, dict.fromkeys(models, "x.csv"), tuple(paired), ())


def scores(num_items=400, spread=0.0, gain=0.1, seed=0):
    """Seeds of two recipes; seeds of one recipe differ by `spread`."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0.5, 0.2, size=num_items)
    return {
        model: (rng.random(num_items) < difficulty + rng.normal(0, spread) + gain * (arm == "dpo"))
        * 1.0
        for arm, models in SEEDS.items()
        for model in models
    }


def test_recipes_are_compared_over_their_seeds():
    given = scores(2000)
    found = compare(pairing({"math": given}), arms=SEEDS)
    (about,) = found["conditions"]
    (test,) = about["comparisons"]
    assert (test["a"], test["b"], test["test"]) == ("dpo", "sft", "seeds")
    expected = seed_test(
        np.stack([given[m] for m in SEEDS["dpo"]]), np.stack([given[m] for m in SEEDS["sft"]])
    )
    assert test["p"] == expected.p_value == test["adjusted_p"]
    assert test["num_seeds"] == [2, 3]
    half = t.isf(0.025, test["degrees"]) * test["error"]
    assert test["interval"] == pytest.approx([test["difference"] - half, test["difference"] + half])
    assert [entry["model"] for entry in about["ranking"]] == ["dpo", "sft"]
    assert about["ranking"][0]["seeds"] == {m: pytest.approx(given[m].mean()) for m in ("d1", "d2")}
    assert found["arms"] == {arm: list(seeds) for arm, seeds in SEEDS.items()}
    assert (
        "2 training recipes (sft (3 training seeds) and dpo (2 training seeds))"
        in (found["methods"])
    )
    assert "crossed random factors" in found["methods"]
    assert "McNemar" not in found["methods"]


def test_one_item_shows_nothing_whatever_the_seeds_say():
    given = {model: np.array([float(model[0] == "d")]) for model in scores(1)}
    found = compare(pairing({"math": given}), arms=SEEDS)
    (test,) = found["conditions"][0]["comparisons"]
    assert (test["p"], test["established"], test["interval"]) == (1.0, False, [-1.0, 1.0])
    assert "1 items are too few to detect anything" in test["sentence"]
    assert "the items are too few to detect any difference." in found["methods"]
    assert found["conditions"][0]["ranking"][0]["interval"] == [0.0, 1.0]


def test_a_difference_that_single_checkpoints_show_may_not_be_one_of_recipes():
    given = scores(3000, spread=0.06, gain=0.0, seed=3)
    both = {"s1": given["s1"], "d2": given["d2"]}
    alone = compare(pairing({"math": both}))["conditions"][0]["comparisons"][0]
    (test,) = compare(pairing({"math": given}), arms=SEEDS)["conditions"][0]["comparisons"]
    assert alone["established"] and not test["established"]
    assert test["seed_variance"] > 10 * test["item_variance"]
    assert test["items_needed"] is None
    assert test["sentence"].endswith("it takes more seeds, not more items.")


def test_more_items_help_where_seeds_hardly_differ():
    given = scores(300, gain=0.03, seed=4)
    (test,) = compare(pairing({"math": given}), arms=SEEDS)["conditions"][0]["comparisons"]
    assert not test["established"]
    assert test["items_needed"] > 300
    assert "300 items and these seeds detect" in test["sentence"]


def test_recipes_match_within_a_margin_and_have_an_overall_score():
    given = {name: scores(800, gain=0.0, seed=place) for place, name in enumerate(("x", "y"))}
    found = compare(pairing(given), arms=SEEDS, margin=0.15, reference="sft")
    for about in found["conditions"]:
        (test,) = about["comparisons"]
        assert test["match"]["matches"], test
        assert "match within 15.0 points" in test["sentence"]
    overall = found["overall"]
    means = [e["score"] for about in found["conditions"] for e in about["ranking"]
             if e["model"] == "dpo"]  # fmt: skip
    dpo = next(entry for entry in overall["ranking"] if entry["model"] == "dpo")
    assert dpo["score"] == pytest.approx(np.mean(means))
    assert "adjusted_p" not in overall["comparisons"][0]


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"sft": ("s1", "s2", "s3"), "dpo": ("d1",)}, "dpo: an arm needs two or more training"),
        ({"sft": ("s1", "s2", "s3"), "dpo": ()}, "got none; a single seed says nothing"),
        ({"sft": ("s1", "s2"), "dpo": ("d1", "d2")}, "s3 is in no --arm; name it in one"),
        ({"sft": ("s1", "s2", "s3", "d1", "d2")}, r"only one --arm \(sft\)"),
        ({"sft": ("s1", "s2", "s3"), "dpo": ("s1", "d2")}, "dpo: s1 stands in sft already"),
        ({"sft": ("s1", "s4"), "dpo": ("d1", "d2")}, "sft: no model 's4'; there are s1, s2"),
    ],
)
def test_arms_that_are_no_sets_of_seeds_are_refused(arms, message):
    with pytest.raises(ResultsError, match=message):
        compare(pairing({"math": scores(20)}), arms=arms)


def test_seeds_on_unequal_items_are_refused():
    uneven = pairing({"math": scores(20)}, left_out={"s2": 3})
    with pytest.raises(ResultsError, match="math: 3 items of s2 are missing elsewhere; training"):
        compare(uneven, arms=SEEDS)


def test_a_reference_is_an_arm():
    with pytest.raises(ResultsError, match="--reference 's1': no such model; there are sft, dpo"):
        compare(pairing({"math": scores(20)}), arms=SEEDS, reference="s1")
