"""Rankings, groups, sentences and the methods paragraph of comparisons with known answers."""

import numpy as np
import pytest
from scipy.stats import binomtest

from moegraft.compare.groups import letters
from moegraft.compare.results import Paired, Pairing
from moegraft.compare.table import compare
from moegraft.errors import ResultsError


def pairing(clusters=None, prompts="equal", notes=(), **scores):
    columns = np.array(list(scores.values()), dtype=np.float64).T
    items = tuple(f"i{place:04d}" for place in range(len(columns)))
    one = Paired("gsm8k", tuple(scores), items, columns, clusters, prompts, {})
    return Pairing(tuple(scores), {name: f"{name}.csv" for name in scores}, (one,), tuple(notes))


def outcomes(wins, losses, both, neither):
    """Two columns with so many items that only the first, only the second, ... solves."""
    a = [1] * wins + [0] * losses + [1] * both + [0] * neither
    b = [0] * wins + [1] * losses + [1] * both + [0] * neither
    return a, b


def test_the_published_gsm8k_pair_has_its_known_p():
    a, b = outcomes(209, 152, 306, 652)  # 6b_verification and 175b_finetuning on 1,319 items
    found = compare(pairing(verification=a, finetuning=b))
    (test,) = found["conditions"][0]["comparisons"]
    assert (test["a"], test["wins"], test["losses"], test["test"]) == (
        "verification",
        209,
        152,
        "mcnemar",
    )
    assert test["p"] == pytest.approx(0.00315, abs=5e-6)
    assert test["p"] == pytest.approx(binomtest(209, 361).pvalue)
    assert test["difference"] == pytest.approx(57 / 1319)
    assert test["sentence"] == (
        "verification is ahead of finetuning by 4.3 points [1.5, 7.1], adjusted p = .003."
    )
    assert [entry["group"] for entry in found["conditions"][0]["ranking"]] == ["a", "b"]


def test_what_is_not_established_says_what_the_items_resolve():
    a, b = outcomes(20, 15, 300, 165)
    found = compare(pairing(new=a, old=b))
    (test,) = found["conditions"][0]["comparisons"]
    assert not test["established"]
    assert test["sentence"].startswith("No difference between new and old is established (1.0 ")
    # Connor 1987: 500 items with 7 % discordance detect about 3.3 points.
    assert test["detectable"] == pytest.approx(0.0331, abs=5e-4)
    assert (
        "500 items detect 3.3 points; a true difference of this size would take"
        in (test["sentence"])
    )
    assert test["items_needed"] > 4000
    assert {entry["group"] for entry in found["conditions"][0]["ranking"]} == {"a"}


def test_a_match_is_said_only_within_a_margin_that_the_items_carry():
    a, b = outcomes(6, 5, 700, 289)
    wide = compare(pairing(new=a, old=b), margin=0.02)["conditions"][0]["comparisons"][0]
    narrow = compare(pairing(new=a, old=b), margin=0.002)["conditions"][0]["comparisons"][0]
    assert wide["match"]["matches"]
    assert "new and old match within 2.0 points: 0.1 points, 90% interval" in wide["sentence"]
    assert not narrow["match"]["matches"]
    assert narrow["sentence"].startswith("No difference")


def test_p_values_are_adjusted_over_all_pairs_and_conditions():
    rng = np.random.default_rng(0)
    columns = {name: rng.integers(2, size=200) for name in "abc"}
    one = pairing(**columns)
    twice = Pairing(one.models, one.sources, (one.conditions[0],) * 2, ())
    found = compare(twice)
    tests = [test for about in found["conditions"] for test in about["comparisons"]]
    assert found["settings"]["num_tests"] == len(tests) == 6
    assert min(test["adjusted_p"] for test in tests) == min(
        1.0, 6 * min(test["p"] for test in tests)
    )


def test_against_a_reference_there_are_fewer_tests_and_plain_groups():
    good, middle, bad = [1] * 90 + [0] * 10, [1] * 50 + [0] * 50, [0] * 90 + [1] * 10
    same = [1] * 51 + [0] * 49
    found = compare(pairing(good=good, middle=middle, bad=bad, same=same), reference="middle")
    assert found["settings"]["num_tests"] == 3
    groups = {e["model"]: e["group"] for e in found["conditions"][0]["ranking"]}
    assert groups == {
        "good": "better",
        "same": "not told apart",
        "middle": "reference",
        "bad": "worse",
    }
    assert "We compared good, bad and same with middle" in found["methods"]
    with pytest.raises(ResultsError, match="no such model; there are good, middle"):
        compare(pairing(good=good, middle=middle), reference="mid")


def test_items_of_one_cluster_are_not_counted_as_independent():
    rng = np.random.default_rng(1)
    shared = np.repeat(rng.normal(0.05, 0.5, size=20), 25)
    b = np.full(500, 0.5)
    clusters = tuple(f"c{place // 25}" for place in range(500))
    alone = compare(pairing(a=b + shared, b=b))["conditions"][0]
    found = compare(pairing(clusters=clusters, a=b + shared, b=b))["conditions"][0]
    assert found["num_clusters"] == 20
    assert found["comparisons"][0]["design_effect"] == pytest.approx(25, rel=0.01)
    widths = [np.diff(one["comparisons"][0]["interval"])[0] for one in (alone, found)]
    assert widths[1] / widths[0] == pytest.approx(5, rel=0.15)
    assert found["comparisons"][0]["test"] == "sign-flip"


def test_scores_that_are_not_binary_get_sign_flips_and_no_wins():
    rng = np.random.default_rng(2)
    a = rng.random(120)
    found = compare(pairing(a=a, b=np.clip(a - 0.1, 0, 1)))
    (test,) = found["conditions"][0]["comparisons"]
    assert (test["test"], test["wins"]) == ("sign-flip", None)
    assert test["established"]
    assert "sign-flip permutation test" in found["methods"]
    assert "Wilson" not in found["methods"]


def test_models_that_agree_everywhere_are_equal_without_nonsense():
    a = [1, 0] * 50
    found = compare(pairing(a=a, b=a), margin=0.05)
    (test,) = found["conditions"][0]["comparisons"]
    assert (test["p"], test["difference"], test["items_needed"]) == (1.0, 0.0, None)
    assert test["sentence"].startswith("a and b match within 5.0 points: 0.0 points")
    bare = compare(pairing(a=a, b=a))["conditions"][0]["comparisons"][0]
    assert bare["sentence"].endswith("the two agree on all 100 items.")


def test_the_methods_paragraph_says_what_was_done():
    a, b = outcomes(209, 152, 306, 652)
    text = compare(pairing(x=a, y=b))["methods"]
    assert "We compared 2 models (x and y) pairwise on gsm8k (1,319 items)." in text
    assert "prompts were verified to be the same" in text
    assert "exact two-sided McNemar test; it is the only test, so nothing was adjusted" in text
    assert "10,000 resamples" in text
    unknown = compare(pairing(prompts="unknown", x=a, y=b))["methods"]
    assert "could not be verified" in unknown
    assert "verified to be" not in unknown


@pytest.mark.parametrize(
    ("apart", "expected"),
    [
        ([], {"w": "a", "x": "a", "y": "a", "z": "a"}),
        ([("w", "z")], {"w": "a", "x": "ab", "y": "ab", "z": "b"}),
        ([("w", "y"), ("w", "z"), ("x", "z")], {"w": "a", "x": "ab", "y": "bc", "z": "c"}),
        (
            [("w", "x"), ("w", "y"), ("w", "z"), ("x", "y"), ("x", "z"), ("y", "z")],
            {"w": "a", "x": "b", "y": "c", "z": "d"},
        ),
    ],
)
def test_letters_are_shared_exactly_by_those_that_no_test_tells_apart(apart, expected):
    assert letters(["w", "x", "y", "z"], apart) == expected


def test_letters_are_right_for_random_tests():
    rng = np.random.default_rng(3)
    names = list("abcdefg")
    for _ in range(50):
        pairs = [(x, y) for i, x in enumerate(names) for y in names[i + 1 :]]
        apart = {one for one in pairs if rng.random() < 0.4}
        found = letters(names, sorted(apart))
        for x, y in pairs:
            assert bool(set(found[x]) & set(found[y])) == ((x, y) not in apart)
