import numpy as np
import pytest

from moegraft.report.summary import summarize
from moegraft.report.verdict import verdicts
from moegraft.stats import mcnemar


def test_the_verdict_says_what_was_planted(paper_summary):
    found = dict(sentence.split(": ", 1) for sentence in verdicts(paper_summary))
    assert found["nano_math/cot"].startswith("The donor is ahead by ")
    assert "Alone, the donor's experts (+" in found["nano_math/cot"]
    assert "of the gap) raise the host's score." in found["nano_math/cot"]
    assert "no effect is established for router" in found["nano_math/cot"]
    assert found["nano_reading/0-shot"].startswith("No difference between donor and host is")
    assert found["nano_science/0-shot"].startswith("The host is ahead by ")
    assert "lower it." in found["nano_science/0-shot"]
    for text in found.values():
        assert "that it exceeds both parents is not established." in text


def put_scores(path, put_cell, make_row, scores, kind="items", **other):
    for name, column in scores.items():
        rows = [
            make_row(f"item-{place:04d}", float(score), **other)
            for place, score in enumerate(column)
        ]
        put_cell(path, kind, name, "task", rows)


def solved(num_items, rates, seed=0):
    """0/1 scores of configurations that agree on 4 of 5 items."""
    rng = np.random.default_rng(seed)
    shared = rng.random(num_items)
    return {
        name: np.where(rng.random(num_items) < 0.8, shared, rng.random(num_items)) < rate
        for name, rate in rates.items()
    }


def test_exceeds_is_said_where_items_that_did_not_choose_confirm_it(tmp_path, make_row, put_cell):
    scores = solved(300, {"host": 0.4, "donor": 0.5, "router": 0.5, "experts": 0.8})
    put_scores(tmp_path, put_cell, make_row, scores)
    (text,) = verdicts(summarize(tmp_path, num_resamples=500))[1:]
    assert "The best of 2 compositions, chosen on 150 items, is experts; on 150 other items" in text
    assert "it exceeds both parents (Holm-adjusted p < .001)" in text
    assert "picking the highest adds" in text


def test_a_winner_by_chance_is_not_said_to_exceed(tmp_path, make_row, put_cell):
    """On the items that it is chosen on, the best of 30 equal ones looks better than its parents;
    a test on the same items would say so here."""
    names = ["host", "donor", *(f"mix-{place}" for place in range(30))]
    scores = solved(200, dict.fromkeys(names, 0.5), seed=14)
    put_scores(tmp_path, put_cell, make_row, scores)
    best = max(names[2:], key=lambda name: scores[name].mean())
    flattered = [
        mcnemar(scores[best].astype(float), scores[parent].astype(float)).p
        for parent in ("host", "donor")
    ]
    assert max(flattered) < 0.05
    (text,) = verdicts(summarize(tmp_path, num_resamples=500))[1:]
    assert "exceeds both parents is not established" in text
    assert "it exceeds" not in text.replace("that it exceeds", "")


def test_held_out_items_of_confirm_judge_what_the_whole_subset_chose(tmp_path, make_row, put_cell):
    scores = solved(400, {"host": 0.4, "donor": 0.5, "router": 0.5, "experts": 0.8})
    subset = {name: column[:100] for name, column in scores.items()}
    put_scores(tmp_path, put_cell, make_row, subset)
    confirmed = {name: scores[name] for name in ("host", "donor", "experts")}
    put_scores(tmp_path, put_cell, make_row, confirmed, kind="confirm")
    summary = summarize(tmp_path, num_resamples=500)
    (winner,) = summary["subset"]["winners"]
    assert (winner["source"], winner["num_choosing"]) == ("held-out items", 100)
    assert winner["num_confirming"] == 300
    assert winner["score"] == pytest.approx(scores["experts"][100:].mean())
    assert "chosen on 100 items, is experts; on 300 held-out items" in verdicts(summary)[1]


def test_equal_scores_match_only_where_the_items_suffice(tmp_path, make_row, put_cell):
    for folder, num_items in (("many", 900), ("few", 100)):
        right = {"host": 0.5, "donor": 0.9, "router": 0.5}
        scores = {name: np.arange(num_items) < rate * num_items for name, rate in right.items()}
        put_scores(tmp_path / folder, put_cell, make_row, scores)
    (many,) = verdicts(summarize(tmp_path / "many", num_resamples=500))[1:]
    (few,) = verdicts(summarize(tmp_path / "few", num_resamples=500))[1:]
    assert "these leave the host's score as it is: router (within ±1 point, 90% interval" in many
    assert "Alone, no effect is established for router (0.0)" in few


def test_agreement_on_every_item_is_no_interval_without_width(tmp_path, make_row, put_cell):
    right = {"host": 0.4, "donor": 0.8, "router": 0.4, "experts": 0.8}
    scores = {name: np.arange(40) < rate * 40 for name, rate in right.items()}
    put_scores(tmp_path, put_cell, make_row, scores)
    (text,) = verdicts(summarize(tmp_path, num_resamples=500))[1:]
    assert "on every single item equal to the donor, the better parent there" in text
    assert "[0.0, 0.0] against" not in text


def test_the_verdict_says_what_its_items_cannot_resolve(paper_summary):
    text = verdicts(paper_summary)[0]
    assert "What 300 items can resolve: differences from the host of about" in text
    assert "points after correction for 32, with 80 % power; smaller ones stay open" in text


def test_one_item_resolves_no_difference_and_no_share(tmp_path, make_row, put_cell):
    scores = {"host": [0], "donor": [1], "router": [0], "experts": [1], "router+experts": [1]}
    put_scores(tmp_path, put_cell, make_row, scores)
    (text,) = verdicts(summarize(tmp_path, num_resamples=500))[1:]
    assert "What 1 items can resolve: no difference from the host, however large; a match" in text
    assert "Shares of the way" not in text


def test_shares_name_the_component_and_warn_where_the_log_probability_disagrees(
    tmp_path, make_row, put_cell
):
    scores = solved(400, {"host": 0.3, "router": 0.3, "experts": 0.7, "router+experts": 0.7})
    for name, column in scores.items():
        rows = [
            make_row(str(place), float(score), gold_logprob=-3.0 + ("router" in name))
            for place, score in enumerate(column)
        ]
        put_cell(tmp_path, "items", name, "task", rows)
    text = verdicts(summarize(tmp_path, num_resamples=500))[1]
    assert "(Shapley, simultaneous): experts +" in text
    assert "By gold log-probability the largest share is router's; only the score backs" in text


def test_an_unfinished_run_says_so_first(tmp_path, make_row, put_cell):
    put_cell(tmp_path, "items", "host", "task", [make_row("a", 1.0)])
    assert verdicts(summarize(tmp_path))[0].startswith("The run is not finished")
