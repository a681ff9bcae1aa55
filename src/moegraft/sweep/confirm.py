"""Which configurations are evaluated on all items, as in Table 1 of Tiwari (GEM 2026)."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from moegraft.evals import store
from moegraft.evals.lock import merge_lock
from moegraft.evals.run import Cell
from moegraft.sweep.design import DONOR
from moegraft.transfer.recipe import HOST

SCHEMA = 1


def best_transfer(run_dir: Path, cells: Sequence[Cell], limit: int | None) -> str | None:
    """The transfer with the highest mean score on the subset; None when there is no transfer.

    Among equals, the one that comes first in the design, which moves fewest components. The
    choice is made on the subset, so its score there is optimistic; its score on the rest is not.

    Args:
        run_dir: a run whose cells are complete.
        cells: the cells of one condition, in the order of the design.
        limit: size of the subset; None for all items.
    """
    means: dict[str, float] = {}
    for cell in cells:
        if cell.configuration in (HOST, DONOR):
            continue
        rows = store.read_rows(run_dir, cell.configuration, cell.condition.name)
        means[cell.configuration] = fmean(
            rows[item.hash]["score"] for item in cell.condition.items[:limit]
        )
    return max(means, key=lambda name: means[name], default=None)


def choose_confirmed(
    run_dir: Path, cells: Sequence[Cell], limit: int | None, named: Sequence[str]
) -> list[Cell]:
    """Cells to evaluate on all items: host, donor, the best transfer, and those named.

    The choice is written to confirm.json.
    """
    by_condition: dict[str, list[Cell]] = {}
    for cell in cells:
        by_condition.setdefault(cell.condition.name, []).append(cell)
    best = {name: best_transfer(run_dir, group, limit) for name, group in by_condition.items()}
    chosen = [
        cell
        for cell in cells
        if cell.configuration in (HOST, DONOR, best[cell.condition.name], *named)
    ]
    configurations: dict[str, list[str]] = {}
    for cell in chosen:
        configurations.setdefault(cell.condition.name, []).append(cell.configuration)
    content = {
        "schema": SCHEMA,
        "chosen_by": "highest mean score on the subset; host, donor and named ones always",
        "best": best,
        "configurations": configurations,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    with merge_lock(run_dir):
        store.write_atomically(run_dir / "confirm.json", text.encode())
    return chosen


def carry_over(
    run_dir: Path, cells: Sequence[Cell], source: str, target: str, limit: int | None
) -> None:
    """Give one folder of results the rows that another has, so that no item is scored twice.

    Args:
        run_dir: the run.
        cells: which cells.
        source: `items` or `confirm`: where rows stand.
        target: where they are wanted too.
        limit: only the first so many items of the canonical order; None for all.
    """
    for cell in cells:
        names = (cell.configuration, cell.condition.name)
        with merge_lock(run_dir):
            known = store.read_rows(run_dir, *names, source)
            rows = store.read_rows(run_dir, *names, target)
            wanted = {item.hash for item in cell.condition.items[:limit]}
            new = [row for item, row in known.items() if item in wanted and item not in rows]
            if new:
                path = store.cell_path(run_dir, *names, target)
                store.write_rows(path, [*rows.values(), *new])
