"""The gate passes what lost nothing, blocks what did, and says when it cannot tell."""

from functools import cache
from xml.etree import ElementTree

import numpy as np
import pytest

from moegraft.compare.clusters import largest_design_effect
from moegraft.compare.gate import Check, Suite, gate, junit, plan
from moegraft.compare.results import Paired, Pairing
from moegraft.config import load_recipe
from moegraft.errors import RecipeError, ResultsError

IFEVAL, GSM8K = 541, 1319


def suite_of(*margins, **settings):
    return Suite(tuple(Check(f"c{i}", margin) for i, margin in enumerate(margins)), **settings)


def pairing_of(*tables):
    """One condition per (gains, losses, both right, both wrong) of the new model."""
    conditions = []
    for place, (gains, losses, right, wrong) in enumerate(tables):
        old = [0] * gains + [1] * losses + [1] * right + [0] * wrong
        new = [1] * gains + [0] * losses + [1] * right + [0] * wrong
        scores = np.array([old, new], dtype=np.float64).T
        items = tuple(map(str, range(len(old))))
        conditions.append(Paired(f"c{place}", ("old", "new"), items, scores, None, "equal", {}))
    return Pairing(("old", "new"), {"old": "a", "new": "b"}, tuple(conditions), ())


def test_an_equally_good_model_passes_where_the_items_carry_the_margin():
    found = gate(suite_of(2.5), pairing_of((50, 50, 800, 419)))
    assert (found["verdict"], found["conditions"][0]["verdict"]) == ("pass", "pass")
    assert found["conditions"][0]["sentence"].startswith(
        "new against old: a loss of 2.5 points is ruled out (0.0 points"
    )
    assert found["conditions"][0]["bounds"][0] > -0.025


def test_an_established_loss_is_a_regression():
    found = gate(suite_of(2.0), pairing_of((20, 90, 800, 409)))
    assert found["verdict"] == "regressed"
    assert found["conditions"][0]["sentence"].startswith("new lost against old (-5.3 points")


def test_too_few_items_are_inconclusive_and_say_how_many_it_takes():
    found = gate(suite_of(2.0), pairing_of((5, 5, 60, 30)))
    (entry,) = found["conditions"]
    assert found["verdict"] == "inconclusive"
    assert entry["items_needed"] == pytest.approx(0.1 * (1.6449 + 0.8416) ** 2 / 0.02**2, abs=1)
    assert "it takes 1,546 items" in entry["sentence"]
    worse = gate(suite_of(2.0), pairing_of((4, 7, 60, 29)))["conditions"][0]
    assert worse["sentence"].endswith("no number of items will let it pass.")


def test_one_open_condition_blocks_and_one_regression_decides():
    good, bad, small = (50, 50, 800, 419), (20, 90, 800, 409), (5, 5, 60, 30)
    verdicts = {
        (good, good): "pass",
        (good, small): "inconclusive",
        (small, bad): "regressed",
        (good, bad): "regressed",
    }
    for tables, verdict in verdicts.items():
        assert gate(suite_of(2.5, 2.5), pairing_of(*tables))["verdict"] == verdict


def test_a_loss_within_the_margin_passes():
    found = gate(suite_of(10.0), pairing_of((20, 50, 800, 449)))
    assert found["verdict"] == "pass"
    assert found["conditions"][0]["difference"] < 0


def test_losses_are_adjusted_for_the_number_of_conditions():
    slight = (20, 34, 500, 446)  # one-sided p of the loss about .03
    alone = gate(suite_of(1.0), pairing_of(slight))
    among = gate(suite_of(*[1.0] * 6), pairing_of(slight, *[(25, 25, 500, 450)] * 5))
    assert alone["conditions"][0]["loss_p"] < 0.05 < among["conditions"][0]["loss_adjusted_p"]
    assert (alone["verdict"], among["verdict"]) == ("regressed", "inconclusive")


def test_a_condition_that_was_not_scored_is_an_error():
    with pytest.raises(ResultsError, match=r"c1: in the suite, but not in the results .*have c0"):
        gate(suite_of(1.0, 1.0), pairing_of((1, 1, 1, 1)))


def test_scores_outside_of_0_and_1_are_refused():
    one = pairing_of((1, 1, 1, 1)).conditions[0]
    long = Paired("c0", one.models, one.items, one.scores * 30, None, "equal", {})
    with pytest.raises(ResultsError, match="needs scores between 0 and 1"):
        gate(suite_of(1.0), Pairing(("old", "new"), {}, (long,), ()))


def test_the_plan_promises_no_margin_that_the_items_cannot_carry():
    suite = Suite((Check("ifeval", 3.0), Check("gsm8k", 3.0)))
    ifeval, gsm8k = plan(suite, {"ifeval": IFEVAL, "gsm8k": GSM8K})
    assert round(100 * ifeval["resolvable"], 1) == 3.4
    assert round(100 * gsm8k["resolvable"], 1) == 2.2
    assert (ifeval["carried"], gsm8k["carried"]) == (False, True)
    assert ifeval["items_needed"] == 687
    closer = plan(suite, {"ifeval": IFEVAL, "gsm8k": GSM8K}, {"ifeval": 0.05})[0]
    assert closer["carried"]


def test_items_that_share_a_text_carry_less():
    suite = Suite((Check("boolq", 2.4),))
    (alone,) = plan(suite, {"boolq": GSM8K})
    (clustered,) = plan(suite, {"boolq": GSM8K}, None, {"boolq": 2.0})
    assert clustered["resolvable"] == pytest.approx(alone["resolvable"] * 2**0.5)
    assert (alone["carried"], clustered["carried"]) == (True, False)
    assert largest_design_effect(["a", "a", None, "b", "b", "b"]) == pytest.approx(14 / 6)
    assert largest_design_effect([None, None]) == 1


def test_junit_counts_and_escapes():
    tables = ((50, 50, 800, 419), (20, 90, 800, 409), (5, 5, 60, 30))
    found = gate(suite_of(2.5, 2.5, 2.5), pairing_of(*tables))
    found["conditions"][1]["sentence"] += ' <script>"&'
    root = ElementTree.fromstring(junit(found))
    assert root.attrib | {"name": ""} == {"name": "", "tests": "3", "failures": "1", "errors": "1"}
    cases = {case.get("name"): [child.tag for child in case] for case in root}
    assert cases == {"c0": ["system-out"], "c1": ["failure"], "c2": ["error"]}
    assert root[1][0].get("message", "").endswith(' <script>"&')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conditions: []", "conditions: expected at least one"),
        ("conditions: [{condition: a}]", r"conditions.0.margin_points"),
        ("conditions: [{condition: a, margin_points: 0}]", "a: margin_points: expected more than"),
        ("conditions: [{condition: a, margin_points: 1, margn: 2}]", "margn"),
        (
            "conditions: [{condition: a, margin_points: 1}, {condition: a, margin_points: 2}]",
            "'a' stands twice",
        ),
        ("conditions: [{condition: a, margin_points: 1}]\nalpha: 5", "alpha: expected a prob"),
    ],
)
def test_a_wrong_suite_is_one_line(tmp_path, text, message):
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path, Suite)
    assert str(caught.value).startswith(str(path))


def false_pass_rate(num_items, discordance, margin, num_runs, seed=0):
    """How often a model that truly lost the whole margin passes."""
    rng = np.random.default_rng(seed)
    suite = suite_of(100 * margin)
    shares = [(discordance - margin) / 2, (discordance + margin) / 2, 1 - discordance]

    @cache  # only these two counts matter
    def passes(gains, losses):
        table = (gains, losses, num_items - gains - losses, 0)
        return gate(suite, pairing_of(table))["verdict"] == "pass"

    draws = rng.multinomial(num_items, shares, size=num_runs)
    return sum(passes(int(gains), int(losses)) for gains, losses, _ in draws) / num_runs


def test_a_model_that_lost_the_margin_passes_in_at_most_one_of_twenty():
    rate = false_pass_rate(200, 0.1, 0.06, 400)
    assert rate <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_items", "discordance", "margin"),
    [(50, 0.1, 0.1), (200, 0.06, 0.05), (541, 0.1, 0.034), (541, 0.04, 0.034), (1319, 0.1, 0.022)],
)
def test_the_false_pass_rate_at_the_margin_is_at_most_5_percent(num_items, discordance, margin):
    num_runs = 5_000
    rate = false_pass_rate(num_items, discordance, margin, num_runs, seed=1)
    assert rate <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / num_runs)
