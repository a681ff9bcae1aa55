"""What the trainers of TRL share here: a folder claimed by its records, freezing, progress."""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from datasets import Dataset

from moegraft.errors import TrainDataError
from moegraft.train.loop import ExactTrainer, OnStep, Prepare, Record, run, weights_digest

Rows = list[dict[str, Any]]


def run_records(
    trainer: ExactTrainer,
    records: Dataset,
    about: Mapping[str, Any],
    *,
    prepare: Prepare | None = None,
    on_step: OnStep | None = None,
    extra: Callable[[], dict[str, float]] | None = None,
) -> Rows:
    """Train on `records`, going on from the last checkpoint in the trainer's folder.

    Args:
        trainer: with everything it needs but what follows.
        records: what it was given to train on.
        about: what else decides the result.
        prepare: called with the model and its optimizer.
        on_step: told about progress.
        extra: more columns of the metrics.

    Returns:
        The rows of the metrics.

    Raises:
        TrainingError: the loss or a gradient is not finite; the last checkpoint stays.
        RunError: the trainer's folder holds another training.
    """
    trainer.prepare = prepare
    record = Record(Path(str(trainer.args.output_dir)), on_step=on_step, extra=extra)
    described = {**about, "data": _digest(records), "start": weights_digest(trainer.model)}  # pyright: ignore[reportArgumentType]
    return run(trainer, record, described)


def checked(records: Dataset, what: str) -> Dataset:
    """`records`, of which there must be at least one. Raises TrainDataError."""
    if not len(records):
        raise TrainDataError(f"no {what} to train on")
    return records


def mean_of_tail(rows: Rows, column: str, share: float) -> float:
    """Mean of a column over the last `share` of the rows that have it, and at least one."""
    seen = [float(row[column]) for row in rows if column in row]
    tail = seen[-max(1, round(len(seen) * share)) :]
    return sum(tail) / max(1, len(tail))


def _digest(records: Dataset) -> str:
    found = sha256()
    for record in records:
        found.update(json.dumps(record, sort_keys=True, ensure_ascii=False).encode())
    return found.hexdigest()
