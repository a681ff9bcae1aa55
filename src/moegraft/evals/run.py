"""Evaluate cells into a run directory: every item once, resumable, by any number of shards."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moegraft.evals import store
from moegraft.evals.command import Command
from moegraft.evals.condition import Condition, Item
from moegraft.evals.judge import Answers, score_items
from moegraft.evals.keys import cell_key, check_row, remember_ingredients, row_key
from moegraft.evals.lock import merge_lock

Shard = tuple[int, int]
"""(i, n): the i-th of n processes, counted from 1."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One configuration under one condition."""

    configuration: str
    """Names the folder of the results."""
    condition: Condition
    ingredients: Mapping[str, Any]
    """What results depend on besides prompts; cells that agree in it are evaluated once."""
    scorer: Answers | Command
    """Answers for the host, in the tokenizer that the condition's prompts were made with; or the
    user's command, for which there need be no host."""
    patches: Callable[[], Sequence[Any]] = tuple
    """Makes the patches that turn the host into the configuration."""
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", cell_key(self.ingredients))


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an evaluation stands, for this process."""

    kind: str
    configuration: str
    condition: str
    done: int
    """Items that this call has scored."""
    total: int
    """Items that this call has to score."""


def evaluate_cells(
    host: Any,
    cells: Sequence[Cell],
    run_dir: Path,
    *,
    limit: int | None = None,
    kind: str = "items",
    shard: Shard = (1, 1),
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> bool:
    """Score the items that have no row yet, and write each row when it is computed.

    The caller holds the shard's `writer_lock`. Items are dealt to shards by their place in the
    canonical order; whatever another shard, also of another number of shards, has finished is
    skipped. When the last item of a cell is there, its rows are joined in canonical order, and
    copied to the cells with the same key.

    Args:
        host: a `runtime.Host`, or what has its `with_patches`.
        cells: in the order in which to evaluate them.
        run_dir: DONE is removed from it when there is anything to do.
        limit: items per cell, the first of the canonical order; None for all.
        kind: `items`, `confirm` or `control`: the folder of the results.
        shard: which of how many processes this is.
        on_progress: called after every row.

    Returns:
        Whether every cell is complete, by whichever process.

    Raises:
        RunError: results on disk were made with other weights, prompts, settings or versions.
    """
    for cell in cells:
        remember_ingredients(run_dir, cell.configuration, cell.condition.name, cell.ingredients)
    groups = identical_cells(cells)
    pending = [_pending(run_dir, group[0], limit, kind, shard) for group in groups]
    total = sum(map(len, pending))
    if total:
        (run_dir / "DONE").unlink(missing_ok=True)
    done = 0
    complete = True
    for group, items in zip(groups, pending, strict=True):
        cell = group[0]
        names = (cell.configuration, cell.condition.name)
        if items:
            path = store.part_path(run_dir, *names, kind, shard)
            with store.ItemLog(path) as log, host.with_patches(cell.patches()):
                for row in _whole(score_items(cell.scorer, cell.condition, items), items):
                    log.append({**row, "key": row_key(cell.key, row["prompt"])})
                    done += 1
                    on_progress(Progress(kind, *names, done, total))
        complete &= _settle(run_dir, group, limit, kind)
    return complete


def identical_cells(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells grouped by condition and key, in order; the first of a group is the one to evaluate."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.condition.name, cell.key), []).append(cell)
    return list(groups.values())


def _pending(run_dir: Path, cell: Cell, limit: int | None, kind: str, shard: Shard) -> list[Item]:
    names = (cell.configuration, cell.condition.name)
    rows = store.read_rows(run_dir, *names, kind)
    where = str(store.cell_path(run_dir, *names, kind))
    pending = []
    for place, item in enumerate(cell.condition.items[:limit]):
        if item.hash in rows:
            check_row(rows[item.hash], cell.key, item.prompt_hash, where)
        elif place % shard[1] == shard[0] - 1:
            pending.append(item)
    return pending


def _whole(rows: Iterable[Mapping[str, Any]], items: Sequence[Item]) -> Iterator[Mapping[str, Any]]:
    """Pass `rows` on, and see that every item got exactly one."""
    missing = {item.hash for item in items}
    for row in rows:
        missing.remove(row["item"])
        yield row
    assert not missing, f"{len(missing)} items got no row"


def _settle(run_dir: Path, group: Sequence[Cell], limit: int | None, kind: str) -> bool:
    """Join the parts of a complete cell, and copy its rows to the cells that equal it."""
    first = group[0]
    condition = first.condition.name
    order = [item.hash for item in first.condition.items]
    num_required = len(order[:limit])
    with merge_lock(run_dir):
        if not store.settle_cell(
            run_dir,
            first.configuration,
            condition,
            kind,
            order=order,
            num_required=num_required,
        ):
            return False
        rows = list(store.read_rows(run_dir, first.configuration, condition, kind).values())
        for cell in group[1:]:
            path = store.cell_path(run_dir, cell.configuration, condition, kind)
            store.write_rows(path, rows)
    return True
