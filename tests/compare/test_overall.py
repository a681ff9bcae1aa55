"""The overall score against a case worked out by hand, and where there is none."""

import numpy as np
import pytest

from moegraft.compare.results import Paired, Pairing
from moegraft.compare.table import compare
from moegraft.errors import RecipeError, ResultsError


def pairing(shared=False, **conditions):
    paired = []
    for name, (a, b) in conditions.items():
        columns = np.array([a, b], dtype=np.float64).T
        prefix = "q" if shared else name
        items = tuple(f"{prefix}{place:04d}" for place in range(len(a)))
        paired.append(Paired(name, ("a", "b"), items, columns, None, "equal", {}))
    return Pairing(("a", "b"), {"a": "a.csv", "b": "b.csv"}, tuple(paired), ())


# a wins 3 of 4 items in x (none lost), and loses 1 of 10 in y.
X = ([1, 1, 1, 0], [0, 0, 0, 0])
Y = ([0] + [1] * 9, [1] * 10)


def test_the_overall_score_is_the_mean_of_the_conditions_means():
    found = compare(pairing(x=X, y=Y))
    overall = found["overall"]
    (test,) = overall["comparisons"]
    assert test["difference"] == pytest.approx((0.75 - 0.1) / 2)
    assert overall["weights"] == {"x": 0.5, "y": 0.5}
    assert {e["model"]: e["score"] for e in overall["ranking"]} == pytest.approx(
        {"a": (0.75 + 0.9) / 2, "b": 0.5}
    )
    # Signs of three differences of .125 and one of -.05: |sum| >= .325 for 4 of 16 flips,
    # +++ with either sign of the fourth (.425, .325), and both mirrored.
    assert test["p"] == pytest.approx(4 / 16)
    assert test["error"] == pytest.approx(0.5 * np.sqrt(0.1875 / 4 + 0.09 / 10), rel=0.03)


def test_weights_count_conditions_by_a_part_of_their_name():
    found = compare(pairing(math=X, boolq=Y), weights={"ma": 3, "boo": 1})
    (test,) = found["overall"]["comparisons"]
    assert test["difference"] == pytest.approx(0.75 * 0.75 - 0.25 * 0.1)
    assert "weighted mean, 0.75 math and 0.25 boolq" in found["methods"]
    one = compare(pairing(math=X, boolq=Y), weights={"math": 3})
    assert one["overall"]["comparisons"][0]["difference"] == pytest.approx(0.75)
    assert one["overall"]["num_items"] == 4
    with pytest.raises(RecipeError, match="--weights mmlu: no such condition"):
        compare(pairing(math=X, boolq=Y), weights={"mmlu": 1})


def test_it_is_outside_of_the_adjusted_tests_unless_asked():
    without = compare(pairing(x=X, y=Y))
    assert without["settings"]["num_tests"] == 2
    (test,) = without["overall"]["comparisons"]
    assert "adjusted_p" not in test and "group" not in without["overall"]["ranking"][0]
    assert test["sentence"].startswith("Overall, a minus b is +32.5 points [")
    assert test["sentence"].endswith(": not adjusted, for orientation.")
    assert "no claim rests on them" in without["methods"]
    counted = compare(pairing(x=X, y=Y), test_overall=True)
    assert counted["settings"]["num_tests"] == 3
    (test,) = counted["overall"]["comparisons"]
    assert test["adjusted_p"] == pytest.approx(3 * 0.25)
    assert test["sentence"].startswith("Overall: No difference between a and b is established")
    assert "all 3 comparisons over 2 conditions and the overall score" in counted["methods"]


def test_equal_models_have_no_difference_overall():
    a = [1, 0] * 20
    found = compare(pairing(x=(a, a), y=(a, a)), test_overall=True)
    (test,) = found["overall"]["comparisons"]
    assert (test["difference"], test["p"], test["error"]) == (0, 1, 0)
    assert test["sentence"].endswith("the two agree on all 80 items.")


def test_questions_that_conditions_share_count_once():
    rng = np.random.default_rng(0)
    a, b = rng.integers(2, size=(2, 300))
    same = compare(pairing(shared=True, x=(a, b), y=(a, b)))["overall"]
    apart = compare(pairing(x=(a, b), y=(a, b)))["overall"]
    assert (same["num_clusters"], apart["num_clusters"]) == (300, 600)
    errors = [one["comparisons"][0]["error"] for one in (same, apart)]
    assert errors[0] / errors[1] == pytest.approx(np.sqrt(2), rel=0.05)


def test_conditions_that_do_not_compare_have_no_overall_score():
    long = tuple([30 * value for value in column] for column in X)
    found = compare(pairing(x=X, length=long))
    assert found["overall"] is None
    assert "no overall score: those of length are not between 0 and 1" in found["notes"]
    with pytest.raises(ResultsError, match="of length are not between 0 and 1; leave it out"):
        compare(pairing(x=X, length=long), test_overall=True)
    assert compare(pairing(x=X, length=long, y=Y), weights={"x": 1, "y": 1})["overall"]
    assert compare(pairing(x=X))["overall"] is None
    with pytest.raises(ResultsError, match="no overall score: x is the only condition"):
        compare(pairing(x=X), test_overall=True)
