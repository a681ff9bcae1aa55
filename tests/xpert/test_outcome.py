import numpy as np
import pytest

from moegraft.report.start_figures import write_start_figures
from moegraft.xpert.compare_recipe import CompareRecipe, Training
from moegraft.xpert.compare_report import arm_rows, verdicts, write_report
from moegraft.xpert.outcome import summarise

RECIPE = CompareRecipe("d", ("x",), {}, arms=("random", "mean", "xpert"), protocols=("ffn",),
                       training=Training(num_steps=20))  # fmt: skip
ABOUT = {
    "donor": "d",
    "target": "olmoe",
    "donor_parameters": 10,
    "target_parameters": 5,
    "domains": ["a", "b"],
    "validation_tokens": {"a": 4, "b": 2},
}


def result(arm, seed, losses, shift=0.0):
    """Losses at steps 0, 10, 20; domain a has two blocks, b one."""
    rng = np.random.default_rng(seed)
    curve = [
        {"step": 10 * i, "tokens": 100 * i, "validation": {"a": loss - 0.5, "b": loss + 0.5}}
        for i, loss in enumerate(losses)
    ]
    a, b = rng.normal(size=2), rng.normal(size=1)
    blocks = {"a": (a + shift + 1).tolist(), "b": (b + shift).tolist()}
    return {"protocol": "ffn", "arm": arm, "seed": seed, "curve": curve, "blocks": blocks}


@pytest.fixture
def summary():
    results = [
        one
        for seed in range(3)
        for one in (
            result("random", seed, (4, 3, 2)),
            result("mean", seed, (4, 3, 2.5), shift=0.1 if seed else -0.3),
            result("xpert", seed, (4, 2.5, 1 + seed / 10), shift=-0.5 - seed / 100),
        )
    ]
    return summarise(RECIPE, results, ABOUT)


def test_losses_and_steps_by_hand(summary):
    arms = summary["protocols"]["ffn"]["arms"]
    assert arms["random"]["final"] == 2 and arms["random"]["final_deviation"] == 0
    assert arms["xpert"]["final"] == pytest.approx(1.1)
    assert arms["xpert"]["final_deviation"] == pytest.approx(0.1)
    assert arms["xpert"]["area"] == pytest.approx((3.25 + (2.5 + 1.1) / 2) / 2)
    first = [10 + 10 * 0.5 / (1.5 - seed / 10) for seed in range(3)]
    assert arms["xpert"]["steps_to_baseline"] == pytest.approx(np.mean(first))
    assert arms["random"]["steps_to_baseline"] == 20
    assert arms["mean"]["steps_to_baseline"] is None and arms["mean"]["num_reached"] == 0


def test_differences_are_paired_over_seeds_and_weigh_domains_alike(summary):
    test = summary["protocols"]["ffn"]["arms"]["xpert"]["against_baseline"]
    assert test["difference"] == pytest.approx(-0.51)  # the blocks' own spread has cancelled out
    low, high = test["interval"]
    assert low < -0.51 < high < -0.45
    other = summary["protocols"]["ffn"]["arms"]["mean"]["against_baseline"]
    assert other["interval"][0] < 0 < other["interval"][1]
    assert other["p_holm"] >= other["p"]
    method = summary["protocols"]["ffn"]["method_against"]["mean"]
    assert method["difference"] == pytest.approx(-0.1 / 3 + 0.51)


def test_the_report_says_what_is_shown_and_what_is_not(summary, tmp_path):
    found = summary["protocols"]["ffn"]
    assert [row[0] for row in arm_rows(found)] == ["xpert", "random", "mean"]
    lines = list(verdicts(found))
    assert lines[0].startswith("xpert ends below random (-0.510 [")
    assert lines[1].startswith("xpert ends below mean (-0.477 [") or "not told" in lines[1]
    write_report(summary, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| mean | 4.000 | 2.500±0.000 | -0.033 [" in text
    assert "| - |" in text and "`xpert`: Tucker of the chosen experts" in text


def test_curves_are_drawn_for_light_and_dark_pages(summary, tmp_path):
    paths = write_start_figures(summary, tmp_path / "figures")
    assert {*paths} == {"starts.svg", "starts.png", "starts-dark.svg"}
    assert "xpert" in paths["starts.svg"].read_text()
