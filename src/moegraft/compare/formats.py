"""Our runs, tables (CSV, JSON lines) and JSON logs of Inspect as results."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from math import fsum
from pathlib import Path
from typing import Any

from moegraft.compare.reading import Fields, csv_lines, json_lines, json_object, number
from moegraft.compare.results import Cells, Results, Row
from moegraft.errors import ResultsError, RunError
from moegraft.evals.condition import content_hash
from moegraft.report.items import Run, read_run

_RESERVED = ("item", "model", "score", "condition", "prompt", "cluster", "output", "gold")
_INSPECT_VALUES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}


def read_run_folder(path: Path, metric: str | None = None) -> list[Results]:
    """Every configuration of a run of `sweep` or `compare`.

    Prompts are known by their text, hashed as lm-eval does, and by their token ids.

    Args:
        path: the run directory.
        metric: one of a row's `scores`, named as lm-eval does; None for the run's own score.
    """
    try:
        run = read_run(path)
    except RunError as error:
        raise ResultsError(str(error)) from None
    own_prompts = bool(run.env.get("own_prompts"))
    notes = () if run.finished else (f"{path} is not finished",)
    cells: dict[str, Cells] = {name: {} for name in run.configurations}
    metrics = {} if metric is None else dict.fromkeys(run.conditions, metric)
    for condition in run.conditions:
        texts = _prompt_texts(run, condition)
        for name, rows in run.items[condition].items():
            cells[name][condition] = {
                item: row
                | {"prompts": _known(row, texts.get(item, {}))}
                | ({} if metric is None else {"score": _score(path, condition, row, metric)})
                for item, row in rows.items()
            }
        if metric is None and (own := _own_metric(run, condition)):
            metrics[condition] = own
    return [
        Results(name, str(path), own, metrics, notes, own_prompts) for name, own in cells.items()
    ]


def _score(path: Path, condition: str, row: Row, metric: str) -> float:
    scores = row.get("scores") or {}
    if metric not in scores:
        raise ResultsError(
            f"{path}: {condition}: no metric {metric!r}; it has {', '.join(scores) or 'none'}"
        )
    return number(scores[metric], f"{path}: {condition}: item {row['item']}", metric)


def _own_metric(run: Run, condition: str) -> str | None:
    """What a run's score is, in the words in which lm-eval's samples say it."""
    about = (run.env.get("conditions") or {}).get(condition) or {}
    primary, extract = about.get("primary"), (about.get("settings") or {}).get("extract")
    if primary is None or extract is not None:
        return None if primary is None else f"{primary} of the extracted {extract}"
    row = next((row for rows in run.items[condition].values() for row in rows.values()), {})
    names = row.get("scores") or {}
    return next((n for n in names if n == primary or n.startswith(f"{primary},")), primary)


def _known(row: Row, text_of: Mapping[str, str]) -> dict[str, str | None]:
    ids = row.get("prompt")
    return {"ids": ids, "text": text_of.get(str(ids))}


def read_table(path: Path, model: str | None) -> list[Results]:
    """A table, long (`item, model, score`) or wide (`item`, then one column per model).

    `condition`, `prompt`, `cluster` and `output` may stand in further columns. A long table
    without a column `model` is of one model, called `model` or like the file.

    Raises:
        ResultsError: a column is missing, an item stands twice, or a score is no number.
    """
    rows = list(csv_lines(path) if path.suffix in (".csv", ".tsv") else json_lines(path))
    if not rows:
        raise ResultsError(f"{path}: no rows in it")
    cells: dict[str, Cells] = {}
    for line, fields, name, score in _scored(path, rows, model or path.stem):
        where = f"{path}: line {line}"
        if fields.get("item") in (None, ""):
            raise ResultsError(f"{where}: no item")
        item, condition = str(fields["item"]), str(fields.get("condition") or "scores")
        found = cells.setdefault(name, {}).setdefault(condition, {})
        if item in found:
            raise ResultsError(
                f"{where}: item {item!r} stands twice for {name!r}; keep one of them"
            )
        cluster = fields.get("cluster")
        found[item] = {
            "score": number(score, where, name if "score" not in fields else "score"),
            "prompts": {"given": str(fields["prompt"])} if fields.get("prompt") else {},
            "cluster": None if cluster in (None, "") else str(cluster),
            "output": fields.get("output"),
            "gold": str(fields.get("gold") or ""),
        }
    return [Results(name, str(path), own) for name, own in cells.items()]


def _scored(
    path: Path, rows: list[tuple[int, Fields]], model: str
) -> Iterator[tuple[int, Fields, str, Any]]:
    """(line, fields, model, score) of every score of a table."""
    columns = list(rows[0][1])
    if "item" not in columns:
        raise ResultsError(f"{path}: no column 'item'; it has {', '.join(map(str, columns))}")
    names = [name for name in columns if name not in _RESERVED]
    if "score" not in columns and not names:
        raise ResultsError(f"{path}: neither a column 'score' nor a column per model")
    for line, fields in rows:
        if "score" in columns:
            yield line, fields, str(fields.get("model") or model), fields.get("score")
        else:
            for name in names:
                yield line, fields, name, fields.get(name)


def read_inspect(path: Path, model: str | None, scorer: str | None) -> Results:
    """A log of Inspect as JSON (`inspect log convert --to json`).

    Scores C, P, I, N count 1, .5, 0, 0; epochs of a sample are averaged. Items are paired by the
    content of input and target; what a solver made of the input is not compared.

    Args:
        path: the log.
        model: its name; None for what the log says.
        scorer: whose scores to take; None for the first one's.

    Raises:
        ResultsError: an unsuccessful evaluation, a sample twice, or a score that is no number.
    """
    log = json_object(path)
    samples, about = log.get("samples"), log.get("eval")
    if not isinstance(samples, list) or not isinstance(about, dict):
        raise ResultsError(f"{path}: not a log of Inspect with samples")
    if log.get("status") != "success":
        raise ResultsError(f"{path}: the evaluation ended with status {log.get('status')!r}")
    scorer = scorer or next((name for s in samples for name in s.get("scores") or {}), "score")
    collected: dict[str, dict[Any, float]] = {}
    outputs: dict[str, Any] = {}
    for sample in samples:
        where = f"{path}: sample {sample.get('id')}"
        item = content_hash([_without_ids(sample.get("input")), sample.get("target")])
        epochs = collected.setdefault(item, {})
        if sample.get("epoch") in epochs:
            raise ResultsError(f"{where}: the same input and target stand twice; keep one of them")
        score = (sample.get("scores") or {}).get(scorer) or {}
        value = score.get("value")
        value = _INSPECT_VALUES.get(value, value) if isinstance(value, str) else value
        epochs[sample.get("epoch")] = number(value, where, scorer)
        outputs.setdefault(item, (sample.get("output") or {}).get("completion"))
    rows: dict[str, Row] = {
        item: {"score": fsum(epochs.values()) / len(epochs), "output": outputs[item]}
        for item, epochs in collected.items()
    }
    condition = str(about.get("task", path.stem))
    name = model or str(about.get("model", path.stem))
    return Results(name, str(path), {condition: rows}, {condition: scorer})


def _without_ids(given: Any) -> Any:
    """An input without what differs from run to run: the ids of its messages."""
    if not isinstance(given, list):
        return given
    return [{key: one.get(key) for key in ("role", "content")} for one in given]


def _prompt_texts(run: Run, condition: str) -> dict[str, dict[str, str]]:
    """By item: hash of the rendered prompt, by the hash of the token ids that it stands for.

    The run keeps one text per item, of the prompt that most configurations were given.
    """
    path = run.path / "prompts" / f"{condition}.jsonl"
    found = {}
    for _, fields in json_lines(path) if path.is_file() else ():
        rows = [rows.get(fields["item"], {}) for rows in run.items[condition].values()]
        ids = Counter(row["prompt"] for row in rows if row.get("prompt")).most_common(1)
        if ids and fields.get("prompt"):
            text = fields["prompt"].encode("utf-8", "replace")
            found[fields["item"]] = {ids[0][0]: hashlib.sha256(text).hexdigest()}
    return found
