"""`*-predictions.jsonl` of OLMES as results, one file per task."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moegraft.compare.reading import Fields, json_lines, json_object, number
from moegraft.compare.results import Cells, Results, Row
from moegraft.errors import ResultsError

PATTERN = "*-predictions.jsonl"
_NAME = re.compile(r"(task-\d+-)?(?P<task>.+)-predictions\.jsonl")


def read_predictions(files: Sequence[Path], model: str, metric: str | None) -> Results:
    """One model's predictions, in the format of OLMES' OUTPUT_FORMATS.md.

    Beside `NAME-predictions.jsonl` stands `NAME-metrics.json`, which says the task, its primary
    metric and the hash of its configuration. Items are paired by `native_id`, the data set's own
    (`doc_id` where a task has none); prompts count as equal where the hashes are.

    Args:
        files: of one model, one per task.
        model: its name.
        metric: of an instance's `metrics`; None for the task's primary one.

    Raises:
        ResultsError: two files of one task, an item twice, no such metric, or no number.
    """
    cells: Cells = {}
    metrics = {}
    for path in files:
        about = _about(path)
        condition = _task(path, about)
        if condition in cells:
            raise ResultsError(
                f"{path}: a second file of {condition} for {model}; name the one file to read"
            )
        lines = list(json_lines(path))
        if not lines:
            raise ResultsError(f"{path}: no predictions in it")
        metrics[condition] = _choose_metric(path, lines[0][1], about, metric)
        cells[condition] = _rows(path, lines, metrics[condition], about.get("task_hash"))
    return Results(model, str(files[0].parent), cells, metrics)


def is_prediction(fields: Fields) -> bool:
    """Whether a line of JSON is a prediction of OLMES."""
    return {"native_id", "metrics"} <= fields.keys() and isinstance(fields["metrics"], dict)


def _about(path: Path) -> Fields:
    beside = path.with_name(f"{path.name.removesuffix('predictions.jsonl')}metrics.json")
    return json_object(beside) if beside.is_file() else {}


def _task(path: Path, about: Fields) -> str:
    alias = ((about.get("task_config") or {}).get("metadata") or {}).get("alias")
    match = _NAME.fullmatch(path.name)
    return str(alias or about.get("task_name") or (match["task"] if match else path.stem))


def _choose_metric(path: Path, first: Fields, about: Fields, asked: str | None) -> str:
    names = list(first.get("metrics") or {})
    name = asked or (about.get("task_config") or {}).get("primary_metric")
    if name is None:
        raise ResultsError(
            f"{path}: no *-metrics.json beside it names the primary metric; pass --metric, one of "
            f"{', '.join(names)}"
        )
    if name not in names:
        raise ResultsError(f"{path}: no metric {name!r}; it has {', '.join(names)} (pass --metric)")
    return str(name)


def _rows(
    path: Path, lines: Sequence[tuple[int, Fields]], metric: str, task_hash: Any
) -> dict[str, Row]:
    key = "native_id" if all(row.get("native_id") is not None for _, row in lines) else "doc_id"
    rows: dict[str, Row] = {}
    for line, fields in lines:
        where = f"{path}: line {line}"
        if fields.get(key) is None:
            raise ResultsError(f"{where}: neither native_id nor doc_id")
        item = str(fields[key])
        if item in rows:
            raise ResultsError(f"{where}: {key} {item} stands twice; keep one of the two")
        outputs = fields.get("model_output") or [{}]
        rows[item] = {
            "score": number((fields.get("metrics") or {}).get(metric), where, metric),
            "prompts": {"given": str(task_hash)} if task_hash else {},
            "output": outputs[0].get("continuation"),
            "gold": str(fields.get("label", "")),
        }
    return rows
