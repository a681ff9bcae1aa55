"""A run directory read for a report: rows by condition and configuration, aligned by item."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float

from moegraft.errors import RunError
from moegraft.evals.record import REPEAT
from moegraft.evals.store import list_cells, read_rows
from moegraft.families import COMPONENTS
from moegraft.report.words import PAPER_CONDITIONS

Row = dict[str, Any]
Cells = dict[str, dict[str, dict[str, Row]]]
"""condition -> configuration -> item hash -> row."""

COMPONENT_ORDER = ("router", "attention", "experts", "rest")


@dataclass(frozen=True, slots=True)
class Run:
    """What a run directory holds, finished or not."""

    path: Path
    env: Mapping[str, Any]
    recipe: Mapping[str, Any]
    finished: bool
    configurations: tuple[str, ...]
    conditions: tuple[str, ...]
    items: Cells
    confirm: Cells
    """Full sets of key configurations, the sweep's rows included; empty without `--confirm`."""
    control: Cells
    """The host scored again under another batch plan."""


def read_run(run_dir: Path | str) -> Run:
    """Read the rows, `env.json` and `recipe.yaml` of a run.

    Raises:
        RunError: no run stands there, or one of its files is damaged.
    """
    path = Path(run_dir)
    items = _read_cells(path, "items")
    if not items:
        raise RunError(f"{path}: no item results found; expected a run directory of `sweep`")
    recipe = _read_mapping(path / "recipe.yaml", yaml.safe_load, "put it back as it was")
    confirm = {
        condition: {
            name: {**items.get(condition, {}).get(name, {}), **rows} for name, rows in cells.items()
        }
        for condition, cells in _read_cells(path, "confirm").items()
    }
    configurations = {name for cells in items.values() for name in cells}
    return Run(
        path=path,
        env=_read_mapping(path / "env.json", json.loads, REPEAT),
        recipe=recipe,
        finished=(path / "DONE").exists(),
        configurations=tuple(sorted(configurations, key=configuration_order)),
        conditions=_condition_order(items, recipe),
        items=items,
        confirm=confirm,
        control=_read_cells(path, "control"),
    )


def components_of(configuration: str) -> tuple[str, ...]:
    """Components that the donor gives: none for `host`; the pure `donor` is not a transfer."""
    return () if configuration == "host" else tuple(configuration.split("+"))


def is_composition(configuration: str) -> bool:
    """Whether the name says which components the donor gives; `host` gives none.

    False for the pure donor, and for a configuration with a name of the user's own.
    """
    return set(components_of(configuration)) <= {*COMPONENTS, "rest"}


def num_repeats(run: Run, condition: str) -> int:
    """Generations per item whose scores were averaged, as `env.json` records them."""
    about = (run.env.get("conditions") or {}).get(condition) or {}
    return int((about.get("settings") or {}).get("repeats") or 1)


def configuration_order(configuration: str) -> tuple[Any, ...]:
    """Sort key of the paper's tables: host, donor, single components, pairs, all."""
    parents = ("host", "donor")
    if configuration in parents:
        return (0, parents.index(configuration))
    names = components_of(configuration)
    known = len(COMPONENT_ORDER)
    places = [COMPONENT_ORDER.index(n) if n in COMPONENT_ORDER else known for n in names]
    return (len(names), *places, configuration)


def finished_cells(
    cells: Mapping[str, Mapping[str, Row]], limit: int | None
) -> tuple[list[str], list[str]]:
    """The configurations that have all items of a condition, and the items they share.

    A cell is finished when it has `limit` items, or as many as the longest cell where the task has
    fewer (or no limit was set). Items are sorted by hash.
    """
    longest = max((len(rows) for rows in cells.values()), default=0)
    target = min(limit or longest, longest)
    names = [name for name, rows in cells.items() if rows and len(rows) >= target]
    shared = set.intersection(*(set(cells[name]) for name in names)) if names else set[str]()
    return sorted(names, key=configuration_order), sorted(shared)


def align(
    run: Run, condition: str, cells: Mapping[str, Mapping[str, Row]], items: Sequence[str]
) -> Float[np.ndarray, "item configuration"]:
    """Scores of `items` under every configuration of `cells`, in their order.

    Raises:
        RunError: two configurations were asked the same item under different prompts, so that
            no paired comparison means anything.
    """
    names = list(cells)
    for name in names[1:]:
        for item in items:
            if cells[name][item].get("prompt") != cells[names[0]][item].get("prompt"):
                raise RunError(
                    f"{run.path}: {condition}: item {item} had another prompt under {name!r} than "
                    f"under {names[0]!r}, and only equal prompts can be paired; delete the results "
                    "of one of them and run the same command again"
                )
    scores = [[float(cells[name][item]["score"]) for name in names] for item in items]
    return np.array(scores, dtype=np.float64).reshape(len(items), len(names))


def mean_of(rows: Iterable[Row], key: str) -> float | None:
    """Mean of a number over the rows that have it; None where none has."""
    values = [float(row[key]) for row in rows if row.get(key) is not None]
    return float(np.mean(values)) if values else None


def _read_cells(path: Path, kind: str) -> Cells:
    cells: Cells = {}
    for configuration, condition in list_cells(path, kind):
        rows = read_rows(path, configuration, condition, kind)
        for item, row in rows.items():
            if not isinstance(row.get("score"), int | float):
                raise RunError(
                    f"{path}: {kind}/{configuration}/{condition}: item {item} has no score"
                )
        cells.setdefault(condition, {})[configuration] = rows
    return cells


def _read_mapping(path: Path, parse: Any, way_out: str) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path}: damaged: {reason}; {way_out}") from None
    if not isinstance(content, dict):
        raise RunError(f"{path}: damaged: it holds no mapping; {way_out}")
    return content


def _condition_order(items: Cells, recipe: Mapping[str, Any]) -> tuple[str, ...]:
    asked = recipe.get("conditions") or recipe.get("tasks") or []
    names = [entry for entry in asked if isinstance(entry, str)]
    known = [name for name in dict.fromkeys(names) if name in items]
    paper = [name for name in PAPER_CONDITIONS if name in items and name not in known]
    return (*known, *paper, *sorted(set(items) - {*known, *paper}))
