import numpy as np
import pytest

from moegraft.xpert.gold_answers import compare_gold, gold_sentence


def rows(values):
    return {
        f"item {n}": {"gold_logprob": None if v is None else float(v), "cluster": None}
        for n, v in enumerate(values)
    }


def test_arms_are_compared_over_seeds_and_items():
    rng = np.random.default_rng(0)
    items = rng.normal(-50, 10, 40)
    arms = {
        name: [rows(items + shift + rng.normal(0, 0.2) + rng.normal(0, 0.5, 40)) for _ in range(3)]
        for name, shift in (("plain", 0.0), ("better", 2.0), ("same", 0.0))
    }
    found = compare_gold(arms)
    by_pair = {(one["a"], one["b"]): one for one in found["comparisons"]}
    seeds = found["seeds"]
    test = by_pair["plain", "better"]
    assert test["difference"] == pytest.approx(np.mean(seeds["plain"]) - np.mean(seeds["better"]))
    assert test["interval"][1] < 0 and test["adjusted_p"] < 0.05
    assert by_pair["plain", "same"]["adjusted_p"] > 0.05
    assert "plain - better = -" in gold_sentence(test) and "nats" in gold_sentence(test)


def test_items_without_a_gold_answer_say_nothing():
    arms = {"a": [rows([None, None])] * 2, "b": [rows([None, None])] * 2}
    assert compare_gold(arms) == {"seeds": {}, "comparisons": []}
