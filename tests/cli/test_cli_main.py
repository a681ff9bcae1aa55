"""The entry point of the command line."""

import subprocess
import sys

import pytest

from moegraft import cli
from moegraft.cli import app


def test_ctrl_c_exits_130_without_a_traceback(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "app", interrupted)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_user_error_is_one_line_and_exit_2(tmp_path):
    command = [sys.executable, "-m", "moegraft", "inspect", str(tmp_path / "absent")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
