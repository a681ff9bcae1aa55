"""Every number of a report, computed once from the items of a run and kept in summary.json."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moegraft.report.analysis import (
    REFERENCES,
    Block,
    Settings,
    describe_cells,
    describe_condition,
    read_block,
)
from moegraft.report.attribution import attribute, log_odds
from moegraft.report.families import adjust
from moegraft.report.items import Cells, Run, align, read_run
from moegraft.report.pairwise import compare_pairs
from moegraft.report.winners import find_winners
from moegraft.stats import noise_floor
from moegraft.stats.inference import NUM_RESAMPLES

SCHEMA = 2

Summary = dict[str, Any]
_Entry = dict[str, Any]


def summarize(
    run: Run | Path | str,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    write: bool = True,
) -> Summary:
    """Compute every estimate, interval and test of a run; write `summary.json`.

    Proportions and differences are fractions (0.03 = 3 points). Items are paired by content
    hash, and resampled by cluster where they share a passage. Cells that are not finished get an
    accuracy and a Wilson interval and no test. Where scores are not 0/1 (averaged repeats), tests
    for proportions are withheld; the paired ones remain.

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
    settings = Settings(seed, num_resamples)
    blocks = _blocks(run, run.items, limit if isinstance(limit, int) else None, settings)
    whole = _blocks(run, run.confirm, None, settings)
    subset = _section(run, run.items, blocks, settings)
    full = _section(run, run.confirm, whole, settings) if run.confirm else None
    subset["winners"] = find_winners(blocks, {one.condition: one for one in whole}, settings)
    subset["pairs"] = compare_pairs(blocks)
    subset["appendix"] = {"conditional_logit": log_odds(run, blocks)}
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


def _blocks(run: Run, cells: Cells, limit: int | None, settings: Settings) -> list[Block]:
    return [
        read_block(run, condition, cells[condition], limit, settings)
        for condition in run.conditions
        if condition in cells
    ]


def _section(run: Run, cells: Cells, blocks: list[Block], settings: Settings) -> _Entry:
    entries = [
        entry
        for block in blocks
        for entry in describe_cells(block, cells[block.condition], settings)
    ]
    families = {reference: adjust(entries, blocks, reference) for reference in REFERENCES}
    num_tests = max(families.values())
    return {
        "conditions": [describe_condition(block, num_tests) for block in blocks],
        "cells": entries,
        "effects": attribute(run, blocks),
        "gold_effects": attribute(run, blocks, gold=True),
        "families": families,
        "winners": [],
        "pairs": [],
        "appendix": {},
    }


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
