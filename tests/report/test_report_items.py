import json

import pytest

from moegraft.errors import RunError
from moegraft.report.items import align, configuration_order, finished_cells, read_run


def test_configurations_are_ordered_as_in_the_papers_tables(paper_run):
    run = read_run(paper_run)
    assert run.configurations == (
        "host",
        "donor",
        "router",
        "attention",
        "experts",
        "router+attention",
        "router+experts",
        "attention+experts",
        "router+attention+experts",
    )
    assert configuration_order("rest") > configuration_order("experts")


def test_conditions_keep_the_order_of_the_recipe(tmp_path, make_run):
    make_run(tmp_path, num_items=3)
    asked = "conditions: [nano_science/5-shot, nano_math/cot]\n"
    (tmp_path / "recipe.yaml").write_text(asked)
    assert read_run(tmp_path).conditions == (
        "nano_science/5-shot",
        "nano_math/cot",
        "nano_reading/0-shot",
        "nano_science/0-shot",
    )


def test_a_folder_without_results_is_one_clear_line(tmp_path):
    with pytest.raises(RunError, match="no item results found"):
        read_run(tmp_path)


def test_damaged_files_name_themselves(tmp_path, make_run, make_row, put_cell):
    make_run(tmp_path, num_items=3)
    (tmp_path / "env.json").write_text('{"schema": 1')
    with pytest.raises(RunError, match=r"env\.json: damaged: .*; delete it and repeat"):
        read_run(tmp_path)
    (tmp_path / "env.json").write_text("[]")
    with pytest.raises(RunError, match="it holds no mapping; delete it"):
        read_run(tmp_path)
    (tmp_path / "env.json").write_text("{}")
    bad = {key: value for key, value in make_row("x", 1.0).items() if key != "score"}
    put_cell(tmp_path, "items", "router", "nano_math/cot", [bad])
    with pytest.raises(RunError, match="item x has no score"):
        read_run(tmp_path)


def test_confirmed_cells_contain_the_items_of_the_sweep(tmp_path, make_run, make_row, put_cell):
    make_run(tmp_path, num_items=3)
    put_cell(tmp_path, "confirm", "host", "nano_math/cot", [make_row("only-in-confirm", 1.0)])
    confirmed = read_run(tmp_path).confirm["nano_math/cot"]["host"]
    assert len(confirmed) == 4


def test_a_cell_in_progress_does_not_shrink_the_others():
    def rows(n):
        return {str(place): {"score": 1.0} for place in range(n)}

    cells = {"host": rows(5), "donor": rows(5), "router": rows(2)}
    assert finished_cells(cells, 5) == (["host", "donor"], ["0", "1", "2", "3", "4"])
    assert finished_cells(cells, 9)[0] == ["host", "donor"]  # the task has only five items
    assert finished_cells(cells, None)[0] == ["host", "donor"]
    assert finished_cells({"host": rows(9), "donor": rows(5)}, 5)[0] == ["host", "donor"]
    assert finished_cells({}, 5) == ([], [])


def test_different_prompts_are_never_paired(tmp_path, make_run, make_row, put_cell):
    make_run(tmp_path, num_items=3)
    rows = [make_row(f"nano_math-{place:04d}", 1.0) for place in range(3)]
    rows[1]["prompt"] = "other"
    put_cell(tmp_path, "items", "router", "nano_math/cot", rows)
    run = read_run(tmp_path)
    cells = dict(sorted(run.items["nano_math/cot"].items(), key=lambda c: c[0] != "host"))
    message = "item nano_math-0001 had another prompt under 'router' than under 'host'"
    with pytest.raises(RunError, match=message):
        align(run, "nano_math/cot", cells, sorted(cells["host"]))


def test_a_torn_last_line_is_left_out(tmp_path, make_run):
    make_run(tmp_path, num_items=3)
    file = tmp_path / "items" / "host" / "nano_math/cot.jsonl"
    content = file.read_bytes()
    file.write_bytes(content + json.dumps({"item": "torn"})[:8].encode())
    assert len(read_run(tmp_path).items["nano_math/cot"]["host"]) == 3
