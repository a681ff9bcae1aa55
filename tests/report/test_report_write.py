import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from moegraft.errors import RunError
from moegraft.report import figures, html, write_report
from moegraft.report.items import read_run

ATTACK = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>\u2028"


class Page(HTMLParser):
    """Collects tags, attributes that could load something, and ids."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.ids = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            local = (value or "").startswith("#")
            if key in ("src", "href", "xlink:href", "data", "action") and not local:
                self.loads.append((tag, key, value))
            if key == "id":
                self.ids.append(value)


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


def test_the_page_loads_nothing_and_has_unique_ids(report):
    page = Page(report[1]["report.html"].read_text())
    assert page.loads == []
    assert len(page.ids) == len(set(page.ids))
    assert {"link", "iframe", "object"}.isdisjoint(page.tags)
    assert page.tags.count("script") == 2
    assert page.tags.count("svg") == 2


def test_figures_repeat_byte_for_byte_and_carry_no_date(report, tmp_path):
    run, paths = report
    summary = json.loads((run / "summary.json").read_text())
    again = figures.write_figures(summary, tmp_path)
    for name, path in again.items():
        assert path.read_bytes() == paths[f"figures/{name}"].read_bytes(), name
    assert "dc:date" not in (tmp_path / "effects.svg").read_text()


def test_text_of_a_model_cannot_become_part_of_the_page(tmp_path, make_row, put_cell):
    for name in ("host", "donor"):
        rows = [make_row("a", 1.0, output=ATTACK, extracted=ATTACK, gold=ATTACK)]
        put_cell(tmp_path, "items", name, "task", rows)
    (tmp_path / "env.json").write_text(json.dumps({"host": ATTACK, "donor": "b"}))
    text = write_report(tmp_path)["report.html"].read_text()
    page = Page(text)
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    assert "document.title='broken'</script>" not in text
    start = text.index('id="items">') + len('id="items">')
    items = json.loads(text[start : text.index("</script>", start)])
    assert items["task"]["items"][0]["cells"]["host"]["output"] == ATTACK


def test_the_explorer_puts_disagreements_first_and_stays_small(report, monkeypatch):
    run = read_run(report[0])
    monkeypatch.setattr(html, "MAX_ITEM_BYTES", 40_000)
    found = html.explorer_items(run)
    assert len(json.dumps(found)) < 60_000
    scores = [cell["score"] for cell in found["nano_math/cot"]["items"][0]["cells"].values()]
    assert 0 < sum(scores) < len(scores)


def test_long_outputs_are_cut_and_say_so(tmp_path, make_row, put_cell):
    put_cell(tmp_path, "items", "host", "task", [make_row("a", 1.0, output="x" * 9000)])
    found = html.explorer_items(read_run(tmp_path))
    assert found["task"]["items"][0]["cells"]["host"]["output"].endswith("... (9000 characters)")


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
