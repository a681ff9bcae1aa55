"""Write the items of a run as `samples_*.jsonl` in lm-evaluation-harness's format."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moegraft.errors import RunError
from moegraft.evals.store import Row, cell_path, list_cells, read_rows, write_atomically


def export_samples(run_dir: Path | str) -> list[Path]:
    """Write `RUN/lm-eval/<configuration>/samples_<condition>_<date>.jsonl` for every cell.

    One line per item and filter, with the fields and hashes that lm-eval writes, so that tools
    that read its samples read these. `resps` is empty for conditions that compare continuations:
    a run keeps their verdict and the gold answer's log-probability only. Needs no torch.

    Args:
        run_dir: a run of `sweep`, finished or not.

    Raises:
        RunError: no run stands there, or it lacks its prompts.
        OutputError: the disk is full or not writable.
    """
    run_dir = Path(run_dir)
    cells = list_cells(run_dir)
    if not cells:
        raise RunError(f"{run_dir}: no item results found; expected a run directory of `sweep`")
    prompts = {condition: _read_prompts(run_dir, condition) for _, condition in cells}
    written = []
    for configuration, condition in cells:
        rows = read_rows(run_dir, configuration, condition)
        lines = [
            json.dumps(sample, ensure_ascii=False)
            for place, (item, row) in enumerate(rows.items())
            for sample in _samples(place, row, prompts[condition][item])
        ]
        name = f"samples_{condition.replace('/', '_')}_{_date(run_dir, configuration, condition)}"
        path = run_dir / "lm-eval" / configuration / f"{name}.jsonl"
        write_atomically(path, ("\n".join(lines) + "\n").encode())
        written.append(path)
    return written


def _samples(place: int, row: Row, asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One sample per filter: `exact_match,strict` in a row's scores is metric and filter."""
    by_filter: dict[str, dict[str, float]] = {}
    for name, value in row["scores"].items():
        metric, _, tag = name.partition(",")
        by_filter.setdefault(tag or "none", {})[metric] = value
    output = row.get("output")
    for tag, metrics in by_filter.items():
        yield {
            "doc_id": place,
            "doc": asked["doc"],
            "target": asked["gold"],
            "arguments": {"gen_args_0": {"arg_0": asked["prompt"]}},
            "resps": [] if output is None else [[output]],
            "filtered_resps": [row.get("extracted") or ""],
            "filter": tag,
            "metrics": list(metrics),
            "doc_hash": _hash(json.dumps(asked["doc"], indent=2, ensure_ascii=False)),
            "prompt_hash": _hash(asked["prompt"]),
            "target_hash": _hash(asked["gold"]),
            **metrics,
            "item": row["item"],
            "score": row["score"],
        }


def _read_prompts(run_dir: Path, condition: str) -> dict[str, Mapping[str, Any]]:
    path = run_dir / "prompts" / f"{condition}.jsonl"
    try:
        lines: Sequence[bytes] = path.read_bytes().splitlines()
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        raise RunError(f"{path} is missing or damaged; run the same sweep again") from None
    return {row["item"]: row for row in rows}


def _date(run_dir: Path, configuration: str, condition: str) -> str:
    path = cell_path(run_dir, configuration, condition)
    source = path if path.exists() else run_dir
    moment = datetime.fromtimestamp(source.stat().st_mtime, tz=UTC)
    return moment.strftime("%Y-%m-%dT%H-%M-%S.%f")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
