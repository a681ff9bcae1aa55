"""What `compare` and `gate` evaluate, and whether a directory may go on with it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from moegraft.config import STRICT, dump_recipe, load_recipe
from moegraft.errors import RecipeError, RunError
from moegraft.evals import store
from moegraft.evals.lock import merge_lock
from moegraft.evals.record import read_env


@dataclass(frozen=True, slots=True)
class EvaluationRecipe:
    """What to evaluate: models, conditions, how many items.

    Raises:
        RecipeError: a number or a name that cannot be used.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    models: Mapping[str, str]
    """By name: folder, `org/name[@revision]`, `nano:NAME`, or the URL of a server."""
    conditions: tuple[str, ...]
    """Tasks under a prompting, or YAML files of tasks and commands."""
    limit: int | Literal["all"] = "all"
    """Items per condition: the first of the seeded order."""
    seed: int = 0
    """Orders the items."""
    dtype: str = "auto"
    """As in a sweep: `auto` is float32 on a CPU, else as stored."""
    chat_template: bool = True
    """Whether prompts are put into each model's chat template."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.limit, str) and self.limit < 1:
            raise RecipeError(f"limit: expected a positive number or 'all', got {self.limit}")
        if not self.conditions:
            raise RecipeError("conditions: expected at least one, such as nano_math/cot")


def claim_run(run_dir: Path, recipe: EvaluationRecipe) -> bool:
    """Make `run_dir` the run of `recipe`, or check that it extends what stands there.

    Returns:
        Whether the run is complete already under this very recipe.

    Raises:
        RunError: another run, something else, or a damaged env.json stands there.
    """
    path = run_dir / "recipe.yaml"
    with merge_lock(run_dir):
        if path.exists():
            try:
                old = load_recipe(path, EvaluationRecipe)
            except RecipeError:
                raise RunError(
                    f"{run_dir} holds a run of another kind; choose another --out"
                ) from None
            changes = list(_changes(old, recipe, _models_begun(run_dir)))
            if changes:
                raise RunError(
                    f"{run_dir} holds another run: {'; '.join(changes)}. A run only grows (more "
                    "items, models, conditions); choose another --out"
                )
            if old == recipe:
                return (run_dir / "DONE").exists() and (run_dir / "env.json").exists()
            (run_dir / "DONE").unlink(missing_ok=True)
        elif any(entry.name != "state" for entry in run_dir.iterdir()):
            raise RunError(f"{run_dir} is not empty and holds no run; choose another --out")
        store.write_atomically(path, dump_recipe(recipe).encode())
    return False


def _models_begun(run_dir: Path) -> frozenset[str]:
    """Models that anything was recorded of; the others may still be replaced."""
    begun = (run_dir / "env.json").exists()
    return frozenset(read_env(run_dir).get("models", ()) if begun else ())


def _changes(old: EvaluationRecipe, new: EvaluationRecipe, begun: frozenset[str]) -> Iterator[str]:
    if not begun:
        return
    for name, source in old.models.items():
        if name in begun and new.models.get(name) != source:
            yield f"model {name} was {source}, now {new.models.get(name, 'missing')}"
    for name in old.conditions:
        if name not in new.conditions:
            yield f"condition {name} is missing"
    sizes = [float("inf") if one.limit == "all" else one.limit for one in (old, new)]
    if sizes[1] < sizes[0]:
        yield f"limit {old.limit} became {new.limit}"
    before, after = asdict(old), asdict(new)
    for key in ("seed", "dtype", "chat_template", "chat_template_kwargs"):
        if before[key] != after[key]:
            yield f"{key} {before[key]!r} became {after[key]!r}"
