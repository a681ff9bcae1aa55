"""The entry point of the command line."""

import subprocess
import sys

import pytest

from moegraft import cli
from moegraft.cli import app, transfer


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
