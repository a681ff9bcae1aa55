import json
import subprocess
import sys

import pytest

from moegraft.errors import RunError
from moegraft.report import figures, write_report


@pytest.fixture(scope="module")
def report(tmp_path_factory, build_run):
    run = build_run(tmp_path_factory.mktemp("run"), num_items=25)
    return run, write_report(run)


@pytest.fixture
def small_run(tmp_path, make_row, put_cell):
    for name in ("host", "donor"):
        put_cell(tmp_path, "items", name, "task", [make_row("a", 1.0), make_row("b", 0.0)])
    return tmp_path


def test_every_file_is_written_and_named(report):
    run, paths = report
    names = ["summary.json", "report.md", "report.html", "tables.tex", "tables.csv"]
    names += ["figures/effects.svg", "figures/effects.png", "figures/effects-dark.svg"]
    assert set(names) <= set(paths)
    assert all(path == run / name for name, path in paths.items())
    assert all(path.stat().st_size for path in paths.values())


def test_figures_repeat_byte_for_byte_and_carry_no_date(report, tmp_path):
    run, paths = report
    summary = json.loads((run / "summary.json").read_text())
    again = figures.write_figures(summary, tmp_path)
    for name, path in again.items():
        assert path.read_bytes() == paths[f"figures/{name}"].read_bytes(), name
    assert "dc:date" not in (tmp_path / "effects.svg").read_text()


def test_without_matplotlib_the_report_says_what_is_missing(small_run, monkeypatch):
    monkeypatch.setattr("moegraft.report.write.can_draw", lambda: False)
    paths = write_report(small_run)
    assert not any(name.startswith("figures/") for name in paths)
    for name in ("report.md", "report.html"):
        assert "pip install" in paths[name].read_text()


def test_the_markdown_names_verdict_figures_and_commands(report):
    text = report[1]["report.md"].read_text()
    assert "## Verdict" in text
    assert "](figures/effects.svg)" in text
    assert "moegraft transfer --host nano:sft-dpo --donor nano:rlvr --components router," in text


def test_the_papers_style_writes_the_papers_tables_only(small_run):
    text = write_report(small_run, style="paper")["tables.tex"].read_text()
    assert text.count(r"\begin{table}") == 1
    assert "dagger" not in text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="expected a run directory"):
        write_report(tmp_path / "nothing")


def test_a_report_needs_no_torch(small_run):
    code = (
        "import sys; from moegraft.report import write_report; write_report(sys.argv[1]); "
        "found = {'torch', 'transformers', 'lm_eval'} & set(sys.modules); sys.exit(str(found) if "
        "found else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(small_run)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
