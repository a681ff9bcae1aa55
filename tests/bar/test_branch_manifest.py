import json

import pytest

from moegraft.bar.manifest import BRANCH, Manifest, read_manifest, write_manifest
from moegraft.errors import BranchError, OutputError

MANIFEST = Manifest(
    kind="dense", domain="math", anchor={"name": "a"}, frozen={"x": "0"}, shared={"y": "1"}
)


def test_a_stage_is_added_and_everything_reads_back(tmp_path):
    stage = {"stage": "sft", "tokens": 12}
    write_manifest(tmp_path, MANIFEST.with_stage(stage))
    found = read_manifest(tmp_path)
    assert found.stages == (stage,)
    assert found == MANIFEST.with_stage(stage)
    assert MANIFEST.stages == ()
    assert [path.name for path in tmp_path.iterdir()] == [BRANCH]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "expected schema 1 of a branch's manifest, got 2; make the folder anew"),
        ({"stages": ["sft"]}, r"stages\.0: expected a mapping with stage and tokens, got 'sft'"),
        ({"stages": [{"stage": "sft", "tokens": "many"}]}, r"stages\.0: expected a mapping"),
        ({"frozen": {"x": 5}}, "frozen: x: got 5"),
        ({"tokens": {"<call>": "a"}}, "tokens: <call>: got 'a'"),
        ({"num_appended": -1}, "num_appended: got -1"),
        ({"kind": "sparse"}, "kind: got 'sparse', expected dense or appended"),
        ({"frozen": ["x"]}, r"frozen: got \['x'\]"),
        ({"stagse": []}, "unknown key 'stagse'"),
    ],
)
def test_what_is_no_manifest_is_refused_with_the_key(change, message, tmp_path):
    content = MANIFEST.as_dict() | change
    (tmp_path / BRANCH).write_text(json.dumps(content))
    with pytest.raises(BranchError, match=message):
        read_manifest(tmp_path)


def test_missing_files_and_keys_are_named(tmp_path):
    with pytest.raises(BranchError, match=r"has no branch\.json; expected a folder that"):
        read_manifest(tmp_path)
    content = MANIFEST.as_dict()
    del content["frozen"]
    (tmp_path / BRANCH).write_text(json.dumps(content))
    with pytest.raises(BranchError, match="lacks 'frozen'"):
        read_manifest(tmp_path)
    (tmp_path / BRANCH).write_text("{")
    with pytest.raises(BranchError, match="cannot be read"):
        read_manifest(tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        write_manifest(tmp_path / "nowhere", MANIFEST)


def test_the_folder_of_a_run_is_told_where_its_branch_is(tmp_path):
    (tmp_path / "branch").mkdir()
    write_manifest(tmp_path / "branch", MANIFEST)
    with pytest.raises(BranchError, match=r"has no branch\.json; .*\(its branch is .*/branch\)"):
        read_manifest(tmp_path)
