import json

import pytest

from moegraft.errors import RunError
from moegraft.report import explorer
from moegraft.report.items import read_run


@pytest.fixture
def one_cell(tmp_path, make_row, put_cell):
    rows = [make_row("a", 1.0, output="x" * 9000), make_row("b", 0.0, looped=True)]
    put_cell(tmp_path, "items", "host", "task", rows)
    (tmp_path / "prompts").mkdir()
    return tmp_path


def prompts(run, **texts):
    lines = [json.dumps({"item": item, "prompt": text}) for item, text in texts.items()]
    (run / "prompts" / "task.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_disagreements_come_first_and_the_size_is_bounded(paper_run, monkeypatch):
    monkeypatch.setattr(explorer, "MAX_ITEM_BYTES", 40_000)
    found = explorer.explorer_items(read_run(paper_run))
    assert len(json.dumps(found)) < 60_000
    assert found["nano_math/cot"]["num_items"] == 300
    scores = [cell["score"] for cell in found["nano_math/cot"]["items"][0]["cells"].values()]
    assert 0 < sum(scores) < len(scores)


def test_long_outputs_are_cut_and_say_so(one_cell):
    item = explorer.explorer_items(read_run(one_cell))["task"]["items"][0]
    assert item["cells"]["host"]["output"].endswith("... (9000 characters)")


def test_what_all_prompts_begin_with_is_given_once(one_cell):
    examples = "Question: 1 + 1?\nAnswer: 2\n\n" * 10
    prompts(one_cell, a=f"{examples}Question: Ann", b=f"{examples}Question: Ben")
    found = explorer.explorer_items(read_run(one_cell))["task"]
    assert found["shared"] == examples
    assert [item["prompt"] for item in found["items"]] == ["Question: Ann", "Question: Ben"]


def test_short_beginnings_stay_where_they_are(one_cell):
    prompts(one_cell, a="Hi\nAnn", b="Hi\nBen")
    found = explorer.explorer_items(read_run(one_cell))["task"]
    assert found["shared"] == ""
    assert found["items"][0]["prompt"] == "Hi\nAnn"


def test_long_prompts_keep_their_end(one_cell):
    prompts(one_cell, a=f"{'x' * 9000} the question", b="y")
    item = explorer.explorer_items(read_run(one_cell))["task"]["items"][0]
    assert item["prompt"].startswith("(9013 characters) ... ")
    assert item["prompt"].endswith(" the question")


def test_a_run_without_prompts_has_none_and_flags_are_named(one_cell):
    items = explorer.explorer_items(read_run(one_cell))["task"]["items"]
    assert items[0]["prompt"] is None
    assert "flags" not in items[0]["cells"]["host"]
    assert items[1]["cells"]["host"]["flags"] == ["looped"]


def test_damaged_prompts_are_an_error_that_names_the_line(one_cell):
    (one_cell / "prompts" / "task.jsonl").write_text("{\n")
    with pytest.raises(RunError, match=r"task\.jsonl: line 1 is damaged"):
        explorer.explorer_items(read_run(one_cell))
