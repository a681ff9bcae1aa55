"""The entry point of the command line."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moegraft import cli
from moegraft.cli import app, transfer
from moegraft.errors import RunError


def test_ctrl_c_exits_130_without_a_traceback(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "app", interrupted)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_within_a_command_says_so(monkeypatch, capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer, "inspect", interrupted)
    monkeypatch.setattr(sys, "argv", ["moegraft", "inspect"])
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


@pytest.mark.parametrize("package", ["torch", "lm_eval"])
def test_a_missing_extra_is_one_line_that_names_it(package, tmp_path):
    script = (
        f"import sys\nsys.modules[{package!r}] = None\nfrom moegraft.cli import main\n"
        "sys.argv = ['moegraft', 'sweep', '--host', 'nano:sft-dpo', '--donor', 'nano:rlvr', "
        f"'--out', {str(tmp_path / 'run')!r}]\nmain()\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == f"error: this needs {package}: pip install 'moegraft[eval]'"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def raising(error):
    def command():
        raise error

    return command


def test_names_in_an_error_are_printed_as_they_are(monkeypatch, capsys):
    monkeypatch.setattr(app, "app", raising(RunError("runs:x: [b]no[/b] :cat:")))
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == "error: runs:x: [b]no[/b] :cat:\n"


def test_a_full_disk_is_one_line_and_other_system_errors_are_not_hidden(monkeypatch, capsys):
    full = OSError(errno.ENOSPC, "No space left on device", "runs/x")
    monkeypatch.setattr(app, "app", raising(full))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    told = "cannot be written: No space left on device; free some space and run it again"
    assert capsys.readouterr().err == f"error: runs/x: {told}\n"
    monkeypatch.setattr(app, "app", raising(IsADirectoryError(errno.EISDIR, "Is a directory")))
    with pytest.raises(IsADirectoryError):
        cli.main()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_stdout_is_one_line():
    command = [sys.executable, "-m", "moegraft", "inspect", "nano:rlvr", "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot be written: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "status"), [("gate", 3), ("bar upgrade", 3), ("report", 2), ("bar report", 2)]
)
def test_an_unknown_flag_of_a_gate_is_no_verdict(command, status, monkeypatch, capsys):
    """Exit status 2 of the gate says that the items are too few."""
    monkeypatch.setattr(sys, "argv", ["moegraft", *command.split(), "--suit", "x"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == status
    assert "--suit" in capsys.readouterr().err


def test_help_shows_whole_flags_at_80_columns():
    """Cut off as `--chat-template-…`, two flags read alike; what does not fit goes on below."""
    command = [sys.executable, "-m", "moegraft", "sweep", "--help"]
    shown = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "80"}
    ).stdout
    assert "…" not in shown
    for rest in ("args", "ations"):  # releases of typer leave more or less room before
        assert re.search(rf"│ +\w{{0,3}}{rest} ", shown)
