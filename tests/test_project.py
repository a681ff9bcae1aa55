"""What holds for the project as a whole: floors, pins, and what is not imported."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {package.lower().replace("_", "-"): version for package, version in pairs}


def _requirements() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    listed = [*project["dependencies"], *(line for extra in extras for line in extra)]
    found = (re.fullmatch(r"([\w-]+)>=([\d.]+)(,<\d+)?", line) for line in listed)
    return {m[1].lower().replace("_", "-"): m[2] for m in found if m}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


@pytest.mark.parametrize("package", sorted(_requirements()))
def test_every_requirement_is_pinned_and_its_floor_is_tested(package):
    floor = _numbers(_requirements()[package])
    tested_floor = _numbers(_pins("constraints-min.txt")[package])
    assert tested_floor[: len(floor)] == floor
    assert _numbers(_pins("constraints.txt")[package]) >= floor


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["--version"],
        ["transfer", "--help"],
        ["sweep", "--help"],
        ["report", "--help"],
        ["select", "--help"],
        ["compare", "--help"],
        ["gate", "--help"],
        ["inspect", "nano:base"],
    ],
)
def test_light_commands_import_neither_torch_nor_transformers(command):
    script = (
        "import sys\nfrom moegraft.cli import main\n"
        f"sys.argv = ['moegraft', *{command!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "known = {'torch', 'transformers', 'lm_eval', 'matplotlib', 'datasets'}\n"
        "heavy = known & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_two_test_files_share_a_name():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(n for n in set(names) if names.count(n) > 1)


def test_every_printed_number_is_explained_in_two_pages():
    """1,598 words of it filled 1.97 pages of A4 in 9.5 pt with margins of 15 mm."""
    assert len((ROOT / "docs" / "statistics.md").read_text().split()) <= 1610


@pytest.mark.parametrize("name", ["", ".compare", ".report", ".runtime", ".sweep", ".transfer"])
def test_type_checkers_see_what_a_package_imports_on_first_use(name):
    """Without the stub every public name would be Any."""
    package = importlib.import_module(f"moegraft{name}")
    lines = Path(str(package.__file__)).with_suffix(".pyi").read_text().splitlines()
    found = [re.fullmatch(r"from (\S+) import (\w+) as \2", line) for line in lines]
    stub = {m[2]: m[1] for m in found if m}
    assert stub == package._EXPORTS
    assert {*stub} == {*package.__all__} - {"__version__"}
