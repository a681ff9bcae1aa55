"""What a run directory says about itself: recipe.yaml, env.json, the prompts, DONE."""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import moegraft
from moegraft.config import dump_recipe, load_recipe
from moegraft.errors import RunError
from moegraft.evals.condition import Condition
from moegraft.evals.lock import merge_lock
from moegraft.evals.store import write_atomically, write_rows
from moegraft.sweep.design import SweepRecipe, check_extends

SCHEMA = 1
_PACKAGES = ("torch", "transformers", "lm_eval", "datasets", "tokenizers", "safetensors", "numpy")


def claim_run(run_dir: Path, recipe: SweepRecipe) -> bool:
    """Make `run_dir` the run of `recipe`, or check that `recipe` continues or extends it.

    Returns:
        Whether the run is complete already under this very recipe.

    Raises:
        RunError: another run, or something else, stands there.
    """
    path = run_dir / "recipe.yaml"
    with merge_lock(run_dir):
        if path.exists():
            old = load_recipe(path, SweepRecipe)
            check_extends(old, recipe, run_dir)
            if old == recipe:
                return (run_dir / "DONE").exists()
            (run_dir / "DONE").unlink(missing_ok=True)
        elif any(entry.name != "state" for entry in run_dir.iterdir()):
            raise RunError(f"{run_dir} is not empty and holds no run; choose another --out")
        write_atomically(path, dump_recipe(recipe).encode())
    return False


def write_env(run_dir: Path, env: Mapping[str, Any]) -> None:
    """Write env.json, if its content changed."""
    path = run_dir / "env.json"
    content = (json.dumps(env, indent=1, ensure_ascii=False) + "\n").encode()
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)


def read_env(run_dir: Path) -> dict[str, Any]:
    """env.json. Raises RunError when it is missing or damaged."""
    try:
        return json.loads((run_dir / "env.json").read_text())
    except (OSError, ValueError):
        raise RunError(
            f"{run_dir}/env.json is missing or damaged; run the same sweep again"
        ) from None


def write_prompts(run_dir: Path, conditions: Sequence[Condition]) -> None:
    """Write what was asked, one row per item, to prompts/<condition>.jsonl."""
    for condition in conditions:
        rows = (
            {
                "item": item.hash,
                "doc": json.loads(json.dumps(item.doc, default=str)),
                "prompt": item.prompt,
                "gold": item.gold,
            }
            for item in condition.items
        )
        write_rows(run_dir / "prompts" / f"{condition.name}.jsonl", rows)


def environment() -> dict[str, Any]:
    """Versions of everything that computes, and the commit of a source checkout."""
    versions = {"python": platform.python_version(), "moegraft": moegraft.__version__}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"schema": SCHEMA, "versions": versions, "git_commit": _git_commit()}


def _git_commit() -> str | None:
    """The commit that moegraft runs from, `-dirty` when changed; None for an installed package."""
    root = Path(moegraft.__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
