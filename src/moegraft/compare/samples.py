"""`samples_*.jsonl` of lm-evaluation-harness as results, one file per task."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moegraft.compare.reading import Fields, json_lines, number
from moegraft.compare.results import Cells, Results, Row
from moegraft.errors import ResultsError
from moegraft.evals.condition import doc_hashes

PATTERN = "samples_*.jsonl"
_NAME = re.compile(r"samples_(?P<task>.+?)(_\d{4}-\d\d-\d\dT[^_]*)?\.jsonl")
_PREFERRED = ("exact_match", "acc", "acc_norm", "prompt_level_strict_acc", "pass@1", "f1")
"""Metrics that are taken, the first of them that a task has, when none is asked for."""


def read_samples(files: Sequence[Path], model: str, metric: str | None) -> Results:
    """One model's samples.

    Items are paired by the content of `doc`, with the hash that our runs have (`doc_hash` where
    there is no `doc`); the n-th copy of one document, in the order of `doc_id`, is an item of its
    own.

    Args:
        files: of one model, one per task.
        model: its name.
        metric: `metric` or `metric,filter`; None for the first of exact_match, acc, acc_norm, ...
            that a task has, under the first filter of the file.

    Raises:
        ResultsError: two files of one task, a document twice, no such metric, or no number.
    """
    cells: Cells = {}
    metrics = {}
    for path in files:
        condition = task_of(path)
        if condition in cells:
            raise ResultsError(
                f"{path}: a second file of {condition} for {model}; name the one file to read"
            )
        samples = [sample for _, sample in json_lines(path)]
        if not samples:
            raise ResultsError(f"{path}: no samples in it")
        name, tag = _choose_metric(path, samples, metric)
        chosen = [sample for sample in samples if _filter(sample) == tag]
        metrics[condition] = name if tag == "none" else f"{name},{tag}"
        cells[condition] = _rows(path, chosen, name)
    return Results(model, str(files[0].parent), cells, metrics)


def task_of(path: Path) -> str:
    """The task that a samples file is named after."""
    match = _NAME.fullmatch(path.name)
    return match["task"] if match else path.stem


def is_sample(fields: Fields) -> bool:
    """Whether a line of JSON is a sample of lm-eval."""
    return "doc_hash" in fields or {"doc_id", "filtered_resps"} <= fields.keys()


def _filter(sample: Fields) -> str:
    return str(sample.get("filter", "none"))


def _choose_metric(path: Path, samples: Sequence[Fields], asked: str | None) -> tuple[str, str]:
    filters = list(dict.fromkeys(_filter(sample) for sample in samples))
    names = list(samples[0].get("metrics") or [k for k in _PREFERRED if k in samples[0]])
    metric, _, tag = (asked or "").partition(",")
    if tag and tag not in filters:
        raise ResultsError(f"{path}: no filter {tag!r}; it has {', '.join(filters)}")
    if metric and metric not in names:
        raise ResultsError(f"{path}: no metric {metric!r}; it has {', '.join(names)}")
    if not names:
        raise ResultsError(f"{path}: the samples name no metric; pass --metric")
    return metric or next((n for n in _PREFERRED if n in names), names[0]), tag or filters[0]


def _rows(path: Path, samples: Sequence[Fields], metric: str) -> dict[str, Row]:
    by_place: dict[Any, Fields] = {}
    for line, sample in enumerate(samples):
        place = sample.get("doc_id", line)
        if place in by_place:
            raise ResultsError(f"{path}: doc_id {place} stands twice; keep one of the two")
        by_place[place] = sample
    ordered = sorted(by_place.items(), key=lambda entry: (str(type(entry[0])), entry[0]))
    docs = [sample.get("doc") for _, sample in ordered]
    known = [doc for doc in docs if isinstance(doc, dict)]
    if len(known) < len(docs):
        known = [{"doc_hash": sample.get("doc_hash")} for _, sample in ordered]
    return {
        item: {
            "score": number(sample.get(metric), f"{path}: doc_id {place}", metric),
            "prompts": {"text": sample.get("prompt_hash")},
            "output": _first_text(sample.get("resps")),
            "gold": str(sample.get("target", "")),
        }
        for item, (place, sample) in zip(doc_hashes(known), ordered, strict=True)
    }


def _first_text(value: Any) -> str | None:
    while isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) else None
