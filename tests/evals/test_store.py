import json

import pytest

from moegraft.errors import OutputError, RunError
from moegraft.evals import store


def row(item: str, score: float = 1.0) -> dict:
    return {"item": item, "score": score, "output": "caf\u00e9 \u2028 line", "key": "k"}


def test_a_row_is_on_disk_when_append_returns(tmp_path):
    path = store.cell_path(tmp_path, "router", "arc/5-shot")
    with store.ItemLog(path) as log:
        log.append(row("a"))
        assert list(store.read_rows(tmp_path, "router", "arc/5-shot")) == ["a"]


def test_a_line_torn_at_any_byte_is_cut_off_and_only_that_item_is_lost(tmp_path):
    path = store.cell_path(tmp_path, "host", "c")
    with store.ItemLog(path) as log:
        for item in "ab":
            log.append(row(item))
        whole = path.read_bytes()
        log.append(row("c"))
    complete = path.read_bytes()
    for length in range(len(whole), len(complete)):
        path.write_bytes(complete[:length])
        assert list(store.read_rows(tmp_path, "host", "c")) == ["a", "b"]
        with store.ItemLog(path) as log:
            assert path.read_bytes() == whole
            log.append(row("c"))
        assert path.read_bytes() == complete


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    path = store.cell_path(tmp_path, "host", "c")
    path.parent.mkdir(parents=True)
    path.write_text('{"item": "a"}\n{"item": "b\n{"item": "c"}\n')
    with pytest.raises(RunError, match=r"c\.jsonl: line 2 is damaged; delete that line"):
        store.read_rows(tmp_path, "host", "c")


def test_parts_of_shards_are_read_as_one_cell_and_joined_in_canonical_order(tmp_path):
    for shard, items in (((1, 2), "da"), ((2, 2), "c"), ((1, 1), "b")):
        with store.ItemLog(store.part_path(tmp_path, "host", "t/5", "items", shard)) as log:
            for item in items:
                log.append(row(item))
    assert store.list_cells(tmp_path) == [("host", "t/5")]
    assert sorted(store.read_rows(tmp_path, "host", "t/5")) == list("abcd")
    assert not store.settle_cell(tmp_path, "host", "t/5", order=list("abcde"), num_required=5)
    assert store.settle_cell(tmp_path, "host", "t/5", order=list("abcde"), num_required=4)
    lines = store.cell_path(tmp_path, "host", "t/5").read_text().splitlines()
    assert [json.loads(line)["item"] for line in lines] == list("abcd")
    assert not list((tmp_path / "state" / "parts").rglob("*.jsonl"))


def test_an_item_in_two_parts_counts_once(tmp_path):
    for shard in ((1, 2), (2, 3)):
        with store.ItemLog(store.part_path(tmp_path, "host", "t", "items", shard)) as log:
            log.append(row("a"))
    assert store.settle_cell(tmp_path, "host", "t", order=["a"], num_required=1)
    assert store.cell_path(tmp_path, "host", "t").read_text().count("\n") == 1


def test_numbers_that_json_lacks_are_stored_as_null(tmp_path):
    path = store.cell_path(tmp_path, "host", "t")
    with store.ItemLog(path) as log:
        log.append({"item": "a", "gold_logprob": float("-inf"), "scores": {"x": float("nan")}})
    found = store.read_rows(tmp_path, "host", "t")["a"]
    assert found == {"item": "a", "gold_logprob": None, "scores": {"x": None}}


@pytest.mark.parametrize("name", ["", "..", "../x", "/etc", "a/b"])
def test_a_configuration_cannot_leave_the_run_directory(tmp_path, name):
    with pytest.raises(RunError, match="cannot name a folder of results"):
        store.cell_path(tmp_path, name, "t")


def test_a_file_below_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/x/y: cannot be written: Not a directory"):
        store.write_atomically(tmp_path / "file" / "x" / "y", b"")
