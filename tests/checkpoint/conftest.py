"""Small checkpoints as fixtures."""

from pathlib import Path

import pytest

from small_checkpoints import make_folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small checkpoint in one file."""
    return make_folder(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path) -> Path:
    """The same checkpoint in three files."""
    return make_folder(tmp_path / "sharded", num_shards=3)
