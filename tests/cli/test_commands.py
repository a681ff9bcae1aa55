"""Subcommands are loaded one by one."""

import json
import subprocess
import sys

import pytest

from moegraft.cli.commands import COMMANDS, load_command

SHOW_MODULES = (
    "import json, sys\nfrom moegraft.cli import main\n"
    "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
    "print('\\n' + json.dumps(sorted(sys.modules)))\n"
)
BY_FLAGS = ("--host", "nano:base", "--donor", "nano:rlvr", "--components", "experts")
NOT_NEEDED = {
    "huggingface_hub",
    "lm_eval",
    "matplotlib",
    "numpy",
    "rich.progress",
    "scipy",
    "statsmodels",
    "torch",
    "transformers",
}


def modules_after(*words):
    command = [sys.executable, "-c", SHOW_MODULES, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_name_leads_to_a_command_with_a_help_text(name):
    command = load_command(name)
    assert command.name == name
    assert command.get_short_help_str()


@pytest.mark.parametrize(
    "words", [("--help",), BY_FLAGS], ids=["transfer --help", "transfer by flags"]
)
def test_a_transfer_loads_no_other_command_and_nothing_heavy(words, tmp_path):
    out = () if words == ("--help",) else ("--out", tmp_path / "out")
    loaded = modules_after("transfer", *words, *out)
    assert "moegraft.cli.transfer" in loaded
    others = {f"moegraft.cli.{place.split(':')[0]}" for place in COMMANDS.values()}
    assert not loaded & (others - {"moegraft.cli.transfer"})
    assert not loaded & NOT_NEEDED
    assert not loaded & {"moegraft.evals", "moegraft.report", "moegraft.runtime", "moegraft.stats"}
    assert out == () or (out[1] / "model.safetensors").is_file()


def test_a_misspelt_command_is_told_the_nearest_of_all():
    command = [sys.executable, "-m", "moegraft", "sweeep"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No such command 'sweeep'. Did you mean 'sweep'?" in done.stderr
