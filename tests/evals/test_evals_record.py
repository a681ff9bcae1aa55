"""The commit that a run records."""

import os
import subprocess

from moegraft.evals.record import commit_of


def test_the_commit_is_read_and_nothing_in_the_checkout_is_written(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    assert commit_of(tmp_path / "absent") is None
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
        (tmp_path / "file").write_text("a")
        subprocess.run([*git, *command], check=True)
    commit = commit_of(tmp_path)
    assert commit is not None and len(commit) == 40
    os.utime(tmp_path / "file", (1, 1))  # the index would be refreshed
    index = tmp_path / ".git" / "index"
    before = index.read_bytes(), index.stat().st_mtime_ns
    assert commit_of(tmp_path) == commit
    assert (index.read_bytes(), index.stat().st_mtime_ns) == before
    (tmp_path / "untracked").touch()
    assert commit_of(tmp_path) == commit
    (tmp_path / "file").write_text("b")
    assert commit_of(tmp_path) == f"{commit}-dirty"
