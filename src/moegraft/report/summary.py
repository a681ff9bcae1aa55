"""Every number of a report, computed once from the items of a run and kept in summary.json."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moegraft.report.items import (
    Cells,
    Row,
    Run,
    align,
    components_of,
    configuration_order,
    finished_cells,
    is_composition,
    mean_of,
    num_repeats,
    read_run,
)
from moegraft.stats import (
    Estimate,
    ItemBootstrap,
    factorial_effects,
    holm,
    mcnemar,
    noise_floor,
    two_proportion_z,
    wilson_interval,
)
from moegraft.stats.factorial import subsets
from moegraft.stats.inference import NUM_RESAMPLES, is_binary

SCHEMA = 1
REFERENCES = ("host", "donor")
"""Every configuration is tested against each of these; each is one family of tests."""

Summary = dict[str, Any]
Resample = Callable[[np.ndarray], ItemBootstrap]
_Entry = dict[str, Any]


def summarize(
    run: Run | Path | str,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    write: bool = True,
) -> Summary:
    """Compute every estimate, interval and test of a run; write `summary.json`.

    Proportions and differences are fractions (0.03 = 3 points). Cells that are not finished get
    an accuracy and a Wilson interval and no test. Where scores are not 0/1 (averaged repeats),
    tests for proportions are withheld and the paired bootstrap remains.

    Args:
        run: a run directory of `sweep`, finished or not, or what `read_run` returned for it.
        seed: of the bootstrap.
        num_resamples: of the bootstrap.
        write: whether to write `summary.json` into the run directory.

    Raises:
        RunError: no run stands there, it is damaged, or prompts of one item differ.
    """
    run = run if isinstance(run, Run) else read_run(run)
    limit = run.recipe.get("limit")
    resample = partial(ItemBootstrap.of, seed=seed, num_resamples=num_resamples)
    subset = _section(run, run.items, limit if isinstance(limit, int) else None, resample)
    full = _section(run, run.confirm, None, resample) if run.confirm else None
    summary: Summary = {
        "schema": SCHEMA,
        "run": {
            "name": run.path.resolve().name,
            "finished": run.finished,
            "host": run.env.get("host", run.recipe.get("host", "host")),
            "donor": run.env.get("donor", run.recipe.get("donor", "donor")),
            "env": dict(run.env),
            "recipe": dict(run.recipe),
        },
        "settings": {"seed": seed, "num_resamples": num_resamples, "level": 0.95},
        "configurations": list(run.configurations),
        "conditions": list(run.conditions),
        "subset": subset,
        "full": full,
        "agreement": _agreement(subset, full) if full else [],
        "noise_floor": _noise(run),
    }
    if write:
        text = json.dumps(summary, indent=1, ensure_ascii=False, default=str)
        (run.path / "summary.json").write_text(text + "\n", encoding="utf-8")
    return summary


def find_cell(section: Mapping[str, Any], configuration: str, condition: str) -> _Entry | None:
    """The entry of one cell, or None where the run has no item of it."""
    for cell in section["cells"]:
        if cell["configuration"] == configuration and cell["condition"] == condition:
            return cell
    return None


def _section(run: Run, cells: Cells, limit: int | None, resample: Resample) -> _Entry:
    entries: list[_Entry] = []
    effects: list[_Entry] = []
    conditions: list[_Entry] = []
    for condition in (name for name in run.conditions if name in cells):
        found = _analyse(run, condition, cells[condition], limit, resample)
        conditions.append(found["condition"])
        effects += found["effects"]
        entries += found["cells"]
    families = {reference: _adjust(entries, reference) for reference in REFERENCES}
    return {"conditions": conditions, "cells": entries, "effects": effects, "families": families}


def _analyse(
    run: Run,
    condition: str,
    cells: Mapping[str, Mapping[str, Row]],
    limit: int | None,
    resample: Resample,
) -> _Entry:
    names, items = finished_cells(cells, limit)
    unpaired = set(run.env.get("unpaired_configurations", []))
    rows = {name: {item: cells[name][item] for item in items} for name in names}
    paired = [name for name in names if name not in unpaired]
    scores = {name: align(run, condition, {name: rows[name]}, items)[:, 0] for name in names}
    binary = num_repeats(run, condition) == 1 and all(
        is_binary(column) for column in scores.values()
    )
    matrix = align(run, condition, {name: rows[name] for name in paired}, items)
    bootstrap = resample(matrix) if items and paired else None
    entries = []
    for name in sorted(cells, key=configuration_order):
        finished = name in names
        entry = _describe(name, condition, list((rows if finished else cells)[name].values()))
        entry["finished"] = finished
        entry["paired"] = name in paired
        if finished and bootstrap is not None:
            entry["against"] = _against(name, paired, scores, bootstrap, binary)
        if finished and name in paired and bootstrap is not None:
            entry |= _place(name, paired, bootstrap)
        elif finished:
            entry["bootstrap"] = _pair(resample(scores[name][:, None]).estimate(np.ones(1)))
        entries.append(entry)
    effects = _effects(run, condition, paired, bootstrap) if bootstrap is not None else []
    about = {"name": condition, "num_items": len(items), "binary": binary}
    return {"condition": about, "cells": entries, "effects": effects}


def _describe(configuration: str, condition: str, rows: Sequence[Row]) -> _Entry:
    values = [float(row["score"]) for row in rows]
    names = sorted({name for row in rows for name in row.get("scores") or {}})
    secondary = {name: mean_of((row.get("scores") or {} for row in rows), name) for name in names}
    binary = bool(values) and is_binary(np.array(values))
    wilson = wilson_interval(int(sum(values)), len(values)) if binary else None
    return {
        "configuration": configuration,
        "condition": condition,
        "num_items": len(values),
        "num_correct": int(sum(values)) if binary else None,
        "score": float(np.mean(values)) if values else None,
        "wilson": [wilson.low, wilson.high] if wilson else None,
        "bootstrap": None,
        "scores": secondary,
        "gold_logprob": mean_of(rows, "gold_logprob"),
        "mean_tokens": mean_of(rows, "num_tokens"),
        "truncated": mean_of(rows, "truncated"),
        "looped": mean_of(rows, "looped"),
        "against": {},
        "gap_recovered": None,
    }


def _place(name: str, paired: Sequence[str], bootstrap: ItemBootstrap) -> _Entry:
    """The interval of a cell's own mean, and the share of the gap that it recovers."""
    column = paired.index(name)
    own = np.zeros(len(paired))
    own[column] = 1.0
    found: _Entry = {"bootstrap": _pair(bootstrap.estimate(own))}
    if name not in REFERENCES and set(REFERENCES) <= set(paired):
        gap = bootstrap.gap_recovered(column, paired.index("host"), paired.index("donor"))
        found["gap_recovered"] = {"value": gap.value, "interval": _pair(gap)} if gap else None
    return found


def _against(
    name: str,
    paired: Sequence[str],
    scores: Mapping[str, np.ndarray],
    bootstrap: ItemBootstrap,
    binary: bool,
) -> _Entry:
    """Tests of one cell against host and donor; paired ones only between equal prompts."""
    found = {}
    for reference in (other for other in REFERENCES if other in scores and other != name):
        a, b = scores[name], scores[reference]
        entry = _test(a, b, binary)
        entry["difference"] = float(np.mean(a) - np.mean(b))
        if {name, reference} <= set(paired):
            difference = bootstrap.difference(paired.index(name), paired.index(reference))
            entry["interval"] = _pair(difference)
            if binary:
                table = mcnemar(a, b)
                entry |= {"mcnemar_p": table.p, "wins": table.wins, "losses": table.losses}
                entry["ties"] = table.ties
        found[reference] = entry
    return found


def _test(a: np.ndarray, b: np.ndarray, binary: bool) -> _Entry:
    entry: _Entry = {"num_pairs": len(a), "z": None, "z_p": None, "interval": None}
    entry |= {"mcnemar_p": None, "mcnemar_holm": None, "wins": None, "losses": None, "ties": None}
    if binary:
        test = two_proportion_z(int(a.sum()), len(a), int(b.sum()), len(b))
        entry |= {"z": test.z, "z_p": test.p}
    return entry


def _adjust(entries: Sequence[_Entry], reference: str) -> int:
    """Write Holm's adjusted p into every test against `reference`; return the family's size."""
    tests = [entry["against"].get(reference) for entry in entries]
    family = [test for test in tests if test is not None and test["mcnemar_p"] is not None]
    adjusted = holm([test["mcnemar_p"] for test in family])
    for test, p in zip(family, adjusted, strict=True):
        test["mcnemar_holm"] = p
    return len(family)


def _effects(
    run: Run, condition: str, paired: Sequence[str], bootstrap: ItemBootstrap
) -> list[_Entry]:
    """Effects over the largest full factorial of the run, once all its corners are finished."""
    corners = {
        frozenset(components_of(name)): name for name in filter(is_composition, run.configurations)
    }
    whole = frozenset[str]().union(*corners)
    if "rest" in whole and "donor" in run.configurations:
        corners.setdefault(whole, "donor")  # every component and the rest: the donor itself
    full = [corner for corner in corners if all(part in corners for part in subsets(list(corner)))]
    components = sorted(max(full, key=len, default=()), key=configuration_order)
    needed = subsets(components)
    if not components or any(corners[part] not in paired for part in needed):
        return []
    columns = {part: paired.index(corners[part]) for part in needed}
    return [
        {
            "condition": condition,
            "kind": effect.kind,
            "components": list(effect.components),
            "value": effect.estimate.value,
            "interval": _pair(effect.estimate),
        }
        for effect in factorial_effects(bootstrap, components, columns)
    ]


def _agreement(subset: _Entry, full: _Entry) -> list[_Entry]:
    """How far each cell's subset was from its full set, for the cells that have both."""
    found = []
    for cell in full["cells"]:
        part = find_cell(subset, cell["configuration"], cell["condition"])
        if part is None or not (part["finished"] and cell["finished"]):
            continue
        low, high = part["bootstrap"]
        found.append(
            {
                "configuration": cell["configuration"],
                "condition": cell["condition"],
                "subset": part["score"],
                "num_subset": part["num_items"],
                "full": cell["score"],
                "num_full": cell["num_items"],
                "difference": part["score"] - cell["score"],
                "inside": low <= cell["score"] <= high,
            }
        )
    return found


def _noise(run: Run) -> list[_Entry]:
    found = []
    for condition, cells in run.control.items():
        for name, again in cells.items():
            first = run.items.get(condition, {}).get(name, {})
            items = sorted(set(first) & set(again))
            if not items:
                continue
            both = align(run, condition, {"first pass": first, "second pass": again}, items)
            floor = asdict(noise_floor(both[:, 0], both[:, 1]))
            found.append({"condition": condition, "configuration": name, **floor})
    order = {name: place for place, name in enumerate(run.conditions)}
    return sorted(found, key=lambda entry: order.get(entry["condition"], len(order)))


def _pair(estimate: Estimate) -> list[float]:
    return [estimate.interval.low, estimate.interval.high]
