"""Which composition to ship: chosen on some items of a run, confirmed on others, as a recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from moegraft.compare.weights import find_condition, resolve_weights
from moegraft.config import dump_recipe, parse_recipe
from moegraft.errors import OutputError, RunError
from moegraft.report.analysis import REFERENCES, Block, Settings, read_block
from moegraft.report.items import Run, configuration_order, read_run
from moegraft.report.summary import summarize
from moegraft.report.task_table import compositions, moved, recommended, sentence, task_table
from moegraft.stats import Interval, pooled_bootstrap, pooled_p, split_halves
from moegraft.sweep.design import DONOR, SweepRecipe, design
from moegraft.transfer.recipe import HOST, TransferRecipe, component_recipe

SCHEMA = 1
ALPHA = 0.05

Entry = dict[str, Any]


def select(
    run_dir: Path | str,
    *,
    condition: str | None = None,
    weights: Mapping[str, float | int] | None = None,
    seed: int = 0,
) -> Entry:
    """The task-adaptive table of a run, and the composition that a question asks for.

    Args:
        run_dir: a run of `sweep`, or one that `compare --as` made.
        condition: the best for one condition, by its name or a part of it that fits no other.
        weights: the best for several, by positive weights that are taken as shares.
        seed: of the bootstrap.

    Returns:
        JSON-ready: `table`, and `choice` (None where nothing is asked), whose numbers come from
        items that it was not chosen on.

    Raises:
        RecipeError: a condition that is not in the run, or a weight that is not positive.
        RunError: no run stands there, or it lacks a parent or compositions to choose from.
    """
    run = read_run(run_dir)
    table = task_table(summarize(run, seed=seed, write=False)["subset"])
    choice = None
    if weights:
        choice = weighted_choice(run, resolve_weights(weights, run.conditions), seed=seed)
    elif condition is not None:
        name = find_condition(condition, run.conditions, "--condition")
        choice = next((entry for entry in table if entry["condition"] == name), None)
        if choice is None:
            raise RunError(_nothing(run, name))
    return {
        "schema": SCHEMA,
        "run": str(run.path),
        "finished": run.finished,
        "table": table,
        "choice": choice,
    }


def recipe_of_choice(
    run_dir: Path | str, configuration: str, *, host: str | None = None, donor: str | None = None
) -> TransferRecipe:
    """The transfer recipe of a configuration of a run.

    Args:
        run_dir: the run.
        configuration: its name.
        host: checkpoint to use instead of the run's; needed where results were imported.
        donor: likewise.

    Raises:
        RunError: the run does not say from which checkpoints it was made.
        RecipeError: its recipe cannot be read.
    """
    run = read_run(run_dir)
    where = f"{run.path / 'recipe.yaml'}"
    if host is not None and donor is not None:
        return component_recipe(host, donor, configuration, qk_norm=_qk_norm(run))
    if not {HOST, DONOR} <= set(run.recipe):
        raise RunError(f"{where} names no host and donor; say --host A --donor B (checkpoints)")
    given = {HOST: host, DONOR: donor}
    content = dict(run.recipe) | {key: value for key, value in given.items() if value is not None}
    recipe = parse_recipe(content, SweepRecipe, where=where)
    known = {made.name: made.recipe for made in design(recipe)}
    if configuration not in known:
        raise RunError(f"{where} has no configuration {configuration!r}; it has {', '.join(known)}")
    return known[configuration]


def write_choice(path: Path, recipe: TransferRecipe, choice: Mapping[str, Any]) -> None:
    """Write a transfer recipe, with what confirms it as comments.

    Raises:
        OutputError: the file exists or cannot be written.
    """
    lines = [moved(choice["configuration"]), told(choice)]
    lines.append(f"moegraft transfer {path.name} --out DIR")
    text = "".join(f"# {line}\n" for line in lines) + dump_recipe(recipe)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise OutputError(f"{path} exists; choose another --out") from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


def told(choice: Mapping[str, Any]) -> str:
    """The choice and its evidence in a sentence."""
    if "weights" not in choice:
        return sentence(choice)
    shares = ", ".join(f"{name} {share:.2f}" for name, share in choice["weights"].items())
    return sentence({**choice, "condition": f"weighted ({shares})"})


def weighted_choice(run: Run, shares: Mapping[str, float], *, seed: int = 0) -> Entry:
    """The composition with the highest weighted score on half the items, judged on the others.

    Halves are those of `stats.split_halves` over the items of all weighted conditions together,
    so an item that two conditions share is on one side in both, and so is a passage. Tests flip
    the signs of whole groups of such items, and "exceeds" needs both parents beaten
    (intersection-union).

    Raises:
        RunError: a condition lacks a parent, or no composition is finished in all of them.
    """
    pooled = _Pooled.of(run, shares)
    first, second = split_halves(pooled.items, pooled.clusters)
    columns = compositions(pooled.names)
    chosen = max(columns, key=lambda name: pooled.mean(name, first))
    against: Entry = {}
    for reference in REFERENCES:
        difference, interval, p = pooled.test(chosen, reference, second, seed)
        ends = [interval.low, interval.high]
        against[reference] = {"difference": difference, "interval": ends, "p": p, "p_holm": None}
    worst = max(t["p"] if t["difference"] > 0 else 1.0 for t in against.values())
    choice = {
        "weights": dict(shares),
        "configuration": chosen,
        "source": "halves",
        "num_choices": len(columns),
        "num_choosing": len(first),
        "num_confirming": len(second),
        "score": pooled.mean(chosen, second),
        "against": against,
        "parent": max(REFERENCES, key=lambda name: pooled.mean(name, second)),
        "p": worst,
        "exceeds": worst < ALPHA,
    }
    return choice | {"recommended": recommended(choice)}


@dataclass(frozen=True)
class _Pooled:
    """Rows of several conditions, each with its condition's share."""

    names: tuple[str, ...]
    items: tuple[str, ...]
    clusters: tuple[str | None, ...]
    conditions: tuple[str, ...]
    shares: Mapping[str, float]
    scores: Mapping[str, Float[np.ndarray, " row"]]

    @classmethod
    def of(cls, run: Run, shares: Mapping[str, float]) -> "_Pooled":
        limit = run.recipe.get("limit")
        limit = limit if isinstance(limit, int) else None
        quick = Settings(num_resamples=2)  # only the aligned scores are used
        blocks = [read_block(run, name, run.items[name], limit, quick) for name in shares]
        names = set.intersection(*(set(block.paired) for block in blocks))
        for block in blocks:
            if not set(REFERENCES) <= set(block.paired) or not compositions([*names]):
                raise RunError(_nothing(run, block.condition))
        ordered = tuple(sorted(names, key=configuration_order))
        return cls(
            names=ordered,
            items=tuple(item for block in blocks for item in block.items),
            clusters=tuple(name for block in blocks for name in _clusters(block)),
            conditions=tuple(block.condition for block in blocks for _ in block.items),
            shares=shares,
            scores={n: np.concatenate([block.scores[n] for block in blocks]) for n in ordered},
        )

    def mean(self, name: str, rows: np.ndarray) -> float:
        """The weighted score of a configuration on some rows."""
        return float(self._weights(rows) @ self.scores[name][rows])

    def test(
        self, name: str, reference: str, rows: np.ndarray, seed: int
    ) -> tuple[float, Interval, float]:
        """Weighted difference, its interval, and the two-sided p of a sign flip by group."""
        of_rows = np.array([self.conditions[row] for row in rows])
        names = [self.clusters[row] or self.items[row] for row in rows]
        difference = self.scores[name][rows] - self.scores[reference][rows]
        places = [np.flatnonzero(of_rows == condition) for condition in self.shares]
        parts = [difference[place] for place in places]
        groups = [[names[row] for row in place] for place in places]
        shares = list(self.shares.values())
        found = pooled_bootstrap([part[:, None] for part in parts], groups, shares, seed=seed)
        estimate = found.estimate(np.ones(1))
        p = pooled_p(parts, groups, shares, seed=seed)
        return estimate.value, estimate.interval, p

    def _weights(self, rows: np.ndarray) -> Float[np.ndarray, " row"]:
        names = [self.conditions[row] for row in rows]
        counts = {name: names.count(name) for name in self.shares}
        return np.array([self.shares[name] / counts[name] for name in names])


def _clusters(block: Block) -> Sequence[str | None]:
    return block.clusters or (None,) * len(block.items)


def _nothing(run: Run, condition: str) -> str:
    return (
        f"{run.path}: {condition}: nothing to choose from; expected host, donor and at least one "
        "composition, finished and asked the same prompts"
    )


def _qk_norm(run: Run) -> Any:
    return run.recipe.get("qk_norm", "attention")
