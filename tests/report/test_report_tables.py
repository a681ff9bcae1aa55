import io

import pytest
from rich.console import Console

from moegraft.report.formats import latex_escape, to_csv, to_latex, to_markdown
from moegraft.report.tables import Entry, Table, build_tables, print_tables
from moegraft.report.words import p_value, points, short_name, stars


def printed(summary, width, style="default"):
    target = io.StringIO()
    print_tables(summary, Console(file=target, width=width), style=style)
    return target.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120])
def test_terminal_tables_fit_the_width_and_cut_nothing(paper_summary, width):
    text = printed(paper_summary, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "Table 1." in text
    assert "Table 2." in text
    assert "exact McNemar" in text
    assert "z-test" in text


def test_conditions_that_do_not_fit_follow_in_further_blocks(paper_summary):
    text = printed(paper_summary, 60)
    assert "…" not in text
    assert text.count("router+attention\n") == 0
    assert text.count("configuration") > printed(paper_summary, 120).count("configuration")


def test_the_papers_style_has_its_columns_rows_and_marks_only(paper_summary):
    tables = build_tables(paper_summary, "paper")
    assert [table.key for table in tables] == ["table1", "table2"]
    rows = [label for label, _ in tables[1].rows]
    assert rows == [
        "nano:sft-dpo checkpoint",
        "nano:rlvr checkpoint",
        "Router only",
        "Attention only",
        "Experts only",
        "Router + Attn",
        "Router + Exp",
        "Attn + Exp",
        "Full transfer",
    ]
    assert "†" not in printed(paper_summary, 100, "paper")
    assert "***" in printed(paper_summary, 100, "paper")


def test_paper_conditions_carry_the_papers_titles(tmp_path, make_row, put_cell):
    from moegraft.report.summary import summarize

    for condition in ("paper_boolq", "paper_arc_challenge/5-shot"):
        for name in ("host", "donor"):
            put_cell(tmp_path, "items", name, condition, [make_row("a", 1.0), make_row("b", 0.0)])
    table = build_tables(summarize(tmp_path), "paper")[0]
    assert set(table.columns) == {("BoolQ", "Zero shot"), ("ARC-C", "5 shot")}


def test_every_table_of_the_default_style_is_there(paper_summary):
    keys = [table.key for table in build_tables(paper_summary)]
    assert keys == [
        "table1",
        "table2",
        "against_host",
        "against_donor",
        "gap",
        "effects",
        "details",
        "agreement",
        "noise",
    ]


def test_markdown_and_latex_escape_what_they_would_interpret():
    table = Table(
        "odd", "50% of a_b & c", (("x|y", "#1"),), (("r_1", (Entry("1", " ±2", "**††"),)),), ("<",)
    )
    markdown = to_markdown(table)
    assert r"x\|y #1" in markdown
    assert r"<sup>\*\*††</sup>" in markdown
    latex = to_latex(table)
    assert r"50\% of a\_b \& c" in latex
    assert r"1 $\pm$2$^{**\dagger \dagger}$" in latex
    assert latex.count(r"\begin") == latex.count(r"\end") == 2
    assert latex_escape("\\{}~^") == (r"\textbackslash{}\{\}\textasciitilde{}\textasciicircum{}")


def test_latex_tables_have_equal_columns_in_every_row(paper_summary):
    for table in build_tables(paper_summary):
        body = to_latex(table).split(r"\toprule")[1].split(r"\bottomrule")[0]
        ampersands = {
            line.replace(r"\&", "").count("&") for line in body.splitlines() if "&" in line
        }
        assert ampersands == {len(table.columns)}, table.key


def test_csv_has_one_row_per_cell_with_its_intervals(paper_summary):
    lines = to_csv(paper_summary).splitlines()
    assert len(lines) == 1 + 3 * 4 + 9 * 4
    header = lines[0].split(",")
    assert {"wilson_low", "host_p_holm", "donor_z_p", "gap_recovered_high"} <= set(header)
    assert all(line.count(",") == len(header) - 1 for line in lines)


def test_numbers_are_said_one_way():
    assert [points(0.0342), points(-0.0001), points(0.0, sign=True)] == ["3.4", "0.0", "0.0"]
    assert [points(0.2, sign=True), points(-0.034, sign=True)] == ["+20.0", "-3.4"]
    assert points(None) == "-"
    assert [p_value(0.0002), p_value(0.0131), p_value(1.0)] == ["p < .001", "p = .013", "p = 1"]
    assert [stars(p, "*") for p in (None, 0.05, 0.049, 0.009, 0.0009)] == ["", "", "*", "**", "***"]
    assert short_name("allenai/OLMoE-1B-7B") == "OLMoE-1B-7B"
    assert short_name("nano:sft-dpo") == "nano:sft-dpo"
