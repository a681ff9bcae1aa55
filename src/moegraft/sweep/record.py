"""Whose run a directory is: the recipe that it was made with, and whether it may go on."""

from pathlib import Path

from moegraft.config import dump_recipe, load_recipe
from moegraft.errors import RecipeError, RunError
from moegraft.evals.begun import has_begun
from moegraft.evals.lock import merge_lock
from moegraft.evals.store import write_atomically
from moegraft.sweep.design import SweepRecipe, check_extends


def claim_run(run_dir: Path, recipe: SweepRecipe) -> bool:
    """Make `run_dir` the run of `recipe`, or check that `recipe` continues or extends it.

    Returns:
        Whether the run is complete already under this very recipe.

    Raises:
        RunError: another run, something else, or a run with a damaged recipe stands there.
    """
    path = run_dir / "recipe.yaml"
    with merge_lock(run_dir):
        if path.exists():
            old = _recipe_of(path)
            if has_begun(run_dir):
                check_extends(old, recipe, run_dir)
            if old == recipe:
                return (run_dir / "DONE").exists() and (run_dir / "env.json").exists()
            (run_dir / "DONE").unlink(missing_ok=True)
        elif any(entry.name != "state" for entry in run_dir.iterdir()):
            raise RunError(f"{run_dir} is not empty and holds no run; choose another --out")
        write_atomically(path, dump_recipe(recipe).encode())
    return False


def recipe_of_run(run_dir: Path) -> SweepRecipe:
    """What a run of `sweep` was made of, as its recipe.yaml says.

    Raises:
        RunError: no run stands there, or one of another command.
        RecipeError: its recipe does not fit.
    """
    path = run_dir / "recipe.yaml"
    if not path.is_file():
        raise RunError(f"{run_dir}: no recipe.yaml found; expected a run directory of `sweep`")
    try:
        return load_recipe(path, SweepRecipe)
    except RecipeError as error:
        if " models: unknown key" not in str(error):
            raise
        kind = "a run of `compare` or `gate`"
        raise RunError(f"{run_dir}: {kind}; expected a run directory of `sweep`") from None


def _recipe_of(path: Path) -> SweepRecipe:
    try:
        return load_recipe(path, SweepRecipe)
    except RecipeError as error:
        way_out = "put the run's recipe back as it was, or choose another --out"
        raise RunError(f"{error}; {way_out}") from None
