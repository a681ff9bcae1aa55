"""Checkpoints without rules for their names can be opened and hashed, not composed."""

import json

import pytest

from moegraft.checkpoint.plain import folder_digest, locate, open_plain
from moegraft.errors import CheckpointError


def test_any_architecture_opens_without_components(make_olmoe, tmp_path):
    folder = make_olmoe(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    opened = open_plain(str(folder))
    assert opened.family.name == "unheard_of"
    assert not opened.family.branching_cache
    assert not opened.pieces()
    assert set(opened.unknown) == set(opened.tensors) == set(opened.content_hashes())
    with pytest.raises(CheckpointError, match="no such folder"):
        open_plain(str(tmp_path / "missing"))


def test_a_digest_follows_names_and_bytes_but_not_hidden_files(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    first = folder_digest(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "lock").write_text("x")
    assert folder_digest(tmp_path) == first
    (tmp_path / "config.json").write_text("{ }")
    assert folder_digest(tmp_path) != first
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    assert folder_digest(tmp_path) != first


def test_sources_are_found_where_they_are(tmp_path):
    assert locate(str(tmp_path)) == tmp_path
    assert (locate("nano:base") / "config.json").is_file()
