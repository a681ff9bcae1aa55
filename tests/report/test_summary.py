import json

import numpy as np
import pytest

from moegraft.errors import RunError
from moegraft.report.summary import find_cell
from moegraft.report.summary import summarize as summarize_run
from moegraft.stats import holm, mcnemar, two_proportion_z, wilson_interval


def summarize(run):
    return summarize_run(run, num_resamples=500)


def cell(summary, configuration, condition, section="subset"):
    found = find_cell(summary[section], configuration, condition)
    assert found is not None
    return found


def column(run, configuration, condition):
    lines = (run / "items" / configuration / f"{condition}.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["score"] for line in lines])


def test_every_cell_has_its_estimates(paper_run, paper_summary):
    assert paper_summary["schema"] == 2
    assert len(paper_summary["subset"]["cells"]) == 9 * 4
    host = column(paper_run, "host", "nano_math/cot")
    donor = column(paper_run, "donor", "nano_math/cot")
    found = cell(paper_summary, "host", "nano_math/cot")
    wilson = wilson_interval(int(host.sum()), 300)
    assert found["score"] == pytest.approx(host.mean())
    assert found["wilson"] == [wilson.low, wilson.high]
    assert found["bootstrap"][0] < found["score"] < found["bootstrap"][1]
    assert found["gold_logprob"] == pytest.approx(host.mean() - 3)
    assert (found["truncated"], found["looped"]) == (0, 0)
    test = found["against"]["donor"]
    assert test["z_p"] == two_proportion_z(int(host.sum()), 300, int(donor.sum()), 300).p
    table = mcnemar(host, donor)
    assert (test["wins"], test["losses"], test["ties"]) == (table.wins, table.losses, table.ties)
    assert (test["test"], test["p"]) == ("mcnemar", table.p)
    assert test["difference"] == pytest.approx(host.mean() - donor.mean())


def test_holm_runs_over_all_configurations_and_conditions_against_one_reference(paper_summary):
    for reference in ("host", "donor"):
        tests = [
            entry["against"][reference]
            for entry in paper_summary["subset"]["cells"]
            if reference in entry["against"]
        ]
        assert len(tests) == paper_summary["subset"]["families"][reference] == 8 * 4
        raw, adjusted = zip(*((t["p"], t["p_holm"]) for t in tests), strict=True)
        assert list(adjusted) == pytest.approx(holm(raw))


def test_planted_effects_are_recovered_and_absent_ones_are_not(paper_summary):
    experts = cell(paper_summary, "experts", "nano_math/cot")
    low, high = experts["against"]["host"]["interval"]
    assert low <= 0.30 <= high
    assert experts["against"]["host"]["p_holm"] < 0.001
    low, high = experts["gap_recovered"]["interval"]
    assert low <= 1 <= high
    router = cell(paper_summary, "router", "nano_math/cot")
    assert router["against"]["host"]["p_holm"] > 0.05
    assert cell(paper_summary, "experts", "nano_reading/0-shot")["gap_recovered"] is None
    effects = {
        (entry["condition"], entry["kind"], *entry["components"]): entry["interval"]
        for entry in paper_summary["subset"]["effects"]
    }
    for key, truth in {
        ("nano_math/cot", "main", "experts"): 0.30,
        ("nano_science/0-shot", "shapley", "experts"): -0.25,
        ("nano_science/5-shot", "main", "attention"): 0.15,
    }.items():
        assert effects[key][0] <= truth <= effects[key][1], key


def test_full_sets_have_their_own_section_and_agree_with_the_subset(paper_summary):
    assert {entry["configuration"] for entry in paper_summary["full"]["cells"]} == {
        "host",
        "donor",
        "experts",
    }
    assert cell(paper_summary, "host", "nano_math/cot", "full")["num_items"] == 600
    assert len(paper_summary["agreement"]) == 12
    inside = [entry["inside"] for entry in paper_summary["agreement"]]
    assert sum(inside) >= 10


def test_the_noise_floor_of_equal_passes_is_zero_and_a_flip_is_counted(
    tmp_path, make_run, make_row, put_cell
):
    make_run(tmp_path, num_items=4)
    assert all(entry["flips"] == 0 for entry in summarize(tmp_path)["noise_floor"])
    scores = 1 - column(tmp_path, "host", "nano_math/cot")
    rows = [make_row(f"nano_math-{place:04d}", score) for place, score in enumerate(scores)]
    put_cell(tmp_path, "control", "host", "nano_math/cot", rows)
    first = summarize(tmp_path)["noise_floor"][0]
    assert (first["condition"], first["flips"]) == ("nano_math/cot", 4)


def test_unfinished_cells_are_described_but_not_tested(tmp_path, make_run, make_row, put_cell):
    make_run(tmp_path, num_items=40)
    rows = [make_row(f"nano_math-{place:04d}", 1.0) for place in range(7)]
    put_cell(tmp_path, "items", "router", "nano_math/cot", rows)
    (tmp_path / "DONE").unlink()
    found = summarize(tmp_path)
    assert not found["run"]["finished"]
    router = cell(found, "router", "nano_math/cot")
    assert (router["num_items"], router["finished"], router["against"]) == (7, False, {})
    assert cell(found, "experts", "nano_math/cot")["num_items"] == 40
    assert not [e for e in found["subset"]["effects"] if e["condition"] == "nano_math/cot"]


def test_averaged_scores_withhold_tests_for_proportions(tmp_path, make_run, make_row, put_cell):
    make_run(tmp_path, num_items=60)
    rows = [make_row(f"nano_math-{place:04d}", place % 4 / 3) for place in range(60)]
    put_cell(tmp_path, "items", "experts", "nano_math/cot", rows)
    found = cell(summarize(tmp_path), "experts", "nano_math/cot")
    test = found["against"]["host"]
    assert (test["z_p"], test["wins"], test["test"]) == (None, None, "sign-flip")
    assert 0 < test["p"] <= test["p_holm"]
    assert test["interval"][0] < test["difference"] < test["interval"][1]
    assert found["wilson"] is None


def test_repeats_are_never_tested_as_binary(tmp_path, make_run):
    make_run(tmp_path, num_items=20)
    settings = {"conditions": {"nano_math/cot": {"settings": {"repeats": 4}}}}
    (tmp_path / "env.json").write_text(json.dumps(settings))
    found = summarize(tmp_path)
    assert [about["binary"] for about in found["subset"]["conditions"]] == [False, True, True, True]
    test = cell(found, "router", "nano_math/cot")["against"]["host"]
    assert (test["z_p"], test["test"]) == (None, "sign-flip")


def test_a_donor_with_its_own_prompts_is_not_paired(tmp_path, make_run, make_row, put_cell):
    make_run(tmp_path, num_items=20)
    rows = [make_row(f"nano_math-{place:04d}", 1.0, prompt="own") for place in range(20)]
    put_cell(tmp_path, "items", "donor", "nano_math/cot", rows)
    with pytest.raises(RunError, match="only equal prompts can be paired"):
        summarize(tmp_path)
    env = json.loads((tmp_path / "env.json").read_text())
    (tmp_path / "env.json").write_text(json.dumps(env | {"unpaired_configurations": ["donor"]}))
    found = summarize(tmp_path)
    donor = cell(found, "donor", "nano_math/cot")["against"]["host"]
    assert donor["z_p"] < 0.05
    assert donor["p"] is donor["interval"] is donor["match"] is None
    router = cell(found, "router", "nano_math/cot")
    assert router["gap_recovered"] is None
    assert router["against"]["donor"]["p"] is None
    assert router["against"]["donor"]["z_p"] is not None
    assert router["against"]["host"]["p"] is not None


def test_four_components_with_rest_use_the_donor_as_the_last_corner(tmp_path, make_row, put_cell):
    rng = np.random.default_rng(0)
    names = ["host", "experts", "rest", "donor"]
    for name in names:
        rate = 0.3 + 0.4 * (name in ("experts", "donor"))
        rows = [make_row(str(place), float(rng.random() < rate)) for place in range(200)]
        put_cell(tmp_path, "items", name, "task", rows)
    effects = summarize(tmp_path)["subset"]["effects"]
    kinds = [(entry["kind"], *entry["components"]) for entry in effects]
    assert ("interaction", "experts", "rest") in kinds
    assert effects[0]["components"] == ["experts"]
    assert effects[0]["value"] == pytest.approx(0.4, abs=0.1)


def test_a_configuration_outside_the_factorial_does_not_hide_its_effects(
    tmp_path, make_run, make_row, put_cell
):
    make_run(tmp_path, num_items=5)
    for name in ("my-mix", "embedding"):
        rows = [make_row(f"nano_math-{place:04d}", 1.0) for place in range(5)]
        put_cell(tmp_path, "items", name, "nano_math/cot", rows)
    effects = summarize(tmp_path)["subset"]["effects"]
    found = {tuple(e["components"]) for e in effects if e["condition"] == "nano_math/cot"}
    assert ("router", "attention", "experts") in found
    assert not any({"my-mix", "embedding"} & set(names) for names in found)


def test_summary_json_holds_the_same_numbers_and_repeats_exactly(paper_run, paper_summary):
    written = (paper_run / "summary.json").read_bytes()
    assert json.loads(written) == json.loads(json.dumps(paper_summary))
    summarize_run(paper_run)
    assert (paper_run / "summary.json").read_bytes() == written
