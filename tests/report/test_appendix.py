import pytest

from moegraft.report.appendix import build_appendix
from moegraft.report.formats import to_latex, to_markdown


@pytest.fixture(scope="module")
def tables(paper_summary):
    return {table.key: table for table in build_appendix(paper_summary)}


def test_the_appendix_has_every_further_analysis(tables):
    assert list(tables) == [
        "simultaneous_host",
        "simultaneous_donor",
        "gold_effects",
        "logit",
        "winners",
        "resolution",
    ]
    for table in tables.values():
        assert all(len(entries) == len(table.columns) for _, entries in table.rows), table.key
        assert to_markdown(table) and to_latex(table)


def test_simultaneous_intervals_hold_the_plain_ones(paper_summary):
    for cell in paper_summary["subset"]["cells"]:
        for test in cell["against"].values():
            wide, plain = test["simultaneous"], test["interval"]
            assert wide[0] < plain[0] + 0.004 and plain[1] - 0.004 < wide[1]
            assert test["p"] <= test["p_bh"] <= test["p_holm"]


def test_planted_effects_stand_in_the_appendix(tables):
    logit = dict(tables["logit"].rows)
    assert float(logit["experts"][0].main) > 1
    assert "p < .001" in logit["experts"][0].detail
    gold = dict(tables["gold_effects"].rows)
    assert gold["shapley: experts"][0].main.startswith("+0.")


def test_resolution_says_what_items_carry(tables):
    label, entries = tables["resolution"].rows[0]
    assert label == "nano_math/cot"
    assert entries[0].main == "300"
    assert float(entries[2].main) < float(entries[3].main)


def test_a_run_without_parents_has_no_appendix(tmp_path, make_row, put_cell):
    from moegraft.report.summary import summarize

    put_cell(tmp_path, "items", "router", "task", [make_row("a", 1.0), make_row("b", 0.0)])
    assert build_appendix(summarize(tmp_path, num_resamples=50)) == []
