import json
import re

import pytest

from moegraft.errors import RunError
from moegraft.report.findings import blame_html, findings_markdown, read_findings
from moegraft.report.html import commands


def unit(expert: int, value: float) -> dict:
    return {"component": "experts", "layer": 0, "expert": expert, "value": value}


def effect(value: float) -> dict:
    return {"effect": value, "interval": [value / 2, 2 * value], "p": 0.01, "mean": -1.0}


@pytest.fixture
def run(tmp_path):
    units = [unit(0, 0.5), unit(1, -0.2)]
    content = {
        "recipe": {
            "host": "a", "donor": "b", "method": "integrated", "path_points": 4,
            "rule": "midpoint", "units": "experts",
        },
        "condition": "nano_math/cot",
        "items": {"ranking": ["x"] * 24},
        "measured": {"host": -2.0, "donor": -1.0, "difference": 1.0},
        "attributed": {"total": 0.9, "completeness_error": -0.1},
        "units": units,
        "top": units[:1],
        "confirmed": {
            "num_items": 24,
            "level": 0.95,
            "units": [units[0] | effect(0.4) | {"p_holm": 0.01, "confirmed": True}],
            "together": effect(0.4),
            "share_kept": None,
            "scores": {
                "metric": "<b>exact</b>", "host": 0.5, "donor": {"mean": 0.6},
                "together": effect(0.1) | {"mean": 0.6},
            },
        },
        "notes": ["<script>1</script>"],
        "command": "moegraft blame runs/x",
    }  # fmt: skip
    folder = tmp_path / "blame" / "nano_math-cot-experts"
    folder.mkdir(parents=True)
    (folder / "blame.json").write_text(json.dumps(content))
    diagnosis = {"sentences": ["Pairing costs <i>."], "notes": ["no_chat"]}
    (tmp_path / "diagnose.json").write_text(json.dumps(diagnosis))
    return tmp_path


def test_an_attribution_becomes_sentences_a_map_and_a_table(run):
    found = blame_html(read_findings(run).blames)
    (body,) = found.values()
    assert [*found] == ["experts, nano_math/cot"]
    assert body.count("<rect") >= 2
    assert "experts[0] of layer 0</th>" in body
    assert "blame/nano_math-cot-experts/recipe.yaml" in body
    assert "<style" not in body
    assert "<script" not in body
    assert "<b>" not in body
    assert not re.search(r"#(0072B2|D55E00)", body)  # colours follow the page


def test_the_markdown_report_tells_both(run):
    blame, routing = findings_markdown(read_findings(run))
    assert blame.startswith(r"**Which experts, nano\_math/cot**")
    assert "- Pairing costs" in routing
    assert r"- no\_chat" in routing


def test_the_command_of_an_attribution_is_among_the_commands(run):
    summary = {"run": {"env": {"command": "moegraft sweep"}}, "configurations": ["host"]}
    assert commands(summary, read_findings(run)) == ["moegraft sweep", "moegraft blame runs/x"]


def test_a_run_without_findings_says_nothing(tmp_path):
    found = read_findings(tmp_path)
    assert (found.blames, found.diagnosis) == ((), None)
    assert findings_markdown(found) == []


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_finding_is_an_error_with_a_way_out(run, text):
    (run / "diagnose.json").write_text(text)
    with pytest.raises(RunError, match=r"diagnose\.json: .*write it again or delete it"):
        read_findings(run)
