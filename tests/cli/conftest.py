"""What tests of commands share."""

import sys

import pytest

from moegraft.cli import main


@pytest.fixture
def moegraft(monkeypatch, capsys):
    """Run the command line in this process, on a wide terminal: (exit code, stdout, stderr)."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moegraft", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "220")
        with pytest.raises(SystemExit) as stopped:
            main()
        code = stopped.value.code
        return (code if isinstance(code, int) else 0, *capsys.readouterr())

    return run
