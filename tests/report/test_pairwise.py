import pytest

from moegraft.report.summary import find_cell


def test_pairs_agree_with_the_cells_and_hold_every_two_configurations(paper_summary):
    section = paper_summary["subset"]
    assert len(section["pairs"]) == 4 * 9 * 8 / 2
    for pair in section["pairs"]:
        a, b = (find_cell(section, pair[side], pair["condition"]) for side in ("a", "b"))
        assert a
        assert b
        assert pair["value"] == pytest.approx(a["score"] - b["score"], abs=1e-12)
        low, high = pair["interval"]
        assert low <= pair["value"] <= high
        if pair["b"] == "host":
            assert pair["interval"] == pytest.approx(a["against"]["host"]["interval"])


def test_simultaneous_intervals_of_pairs_are_wider_and_find_the_planted_effect(paper_summary):
    found = {
        (pair["condition"], pair["a"], pair["b"]): pair for pair in paper_summary["subset"]["pairs"]
    }
    for pair in found.values():
        wide = pair["simultaneous"][1] - pair["simultaneous"][0]
        assert wide > pair["interval"][1] - pair["interval"][0]
    assert found["nano_math/cot", "experts", "router"]["simultaneous"][0] > 0
    low, high = found["nano_reading/0-shot", "experts", "router"]["simultaneous"]
    assert low < 0 < high
