"""The README says what is true: its generated parts, its commands, its Python."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moegraft.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GROUPS = ("xpert", "bar")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def _commands() -> list[list[str]]:
    text = "\n".join(_blocks("console")).replace("\\\n", " ")
    lines = [line[2:].split("#")[0] for line in text.splitlines() if line.startswith("$ ")]
    return [shlex.split(line) for line in lines]


def test_the_tree_and_the_table_of_families_are_those_of_the_code():
    spec = importlib.util.spec_from_file_location("render_readme", ROOT / "docs/render_readme.py")
    render_readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render_readme)
    assert render_readme.render(README) == README, "run `make readme`"


def test_every_module_says_in_one_sentence_what_it_is():
    empty = [line for line in README.splitlines() if re.fullmatch(r"\s+\w+\.py\s*", line)]
    assert not empty


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_every_command_exists_with_the_flags_it_uses(command):
    if command[0] == "make":
        assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if command[0] == "pip":
        return
    assert command[0] == "moegraft"
    called = command[1 : 3 if command[1] in GROUPS else 2]
    shown = subprocess.run(
        [sys.executable, "-m", "moegraft", *called, "--help"],
        check=False,
        capture_output=True,
        text=True,
        env={"COLUMNS": "200", "PATH": "", "NO_COLOR": "1", "TERM": "dumb"},
    )
    assert shown.returncode == 0, shown.stderr
    for flag in (word for word in command if word.startswith("--")):
        assert flag in shown.stdout, f"{flag} is not a flag of moegraft {' '.join(called)}"


def test_the_example_of_bar_calls_commands_and_flags_that_exist():
    script = (ROOT / "examples/bar/run.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    calls = [line.split("moegraft bar ", 1)[1] for line in script.splitlines() if " bar " in line]
    assert len(calls) >= 8
    for words in map(shlex.split, calls):
        shown = CliRunner().invoke(app, ["bar", words[0], "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, shown.output
        for flag in (word for word in words if word.startswith("--")):
            assert flag in shown.output, f"{flag} is not a flag of moegraft bar {words[0]}"


def test_the_python_example_runs():
    (example,) = _blocks("python")
    command = [sys.executable, "-c", example]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_link_leads_to_a_file():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
