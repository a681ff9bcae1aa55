"""Foreign results as a run directory: `--as router+experts=DIR` for every configuration."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moegraft.compare.results import Pairing, Results, Row, pair
from moegraft.errors import OutputError, RecipeError
from moegraft.evals import store
from moegraft.evals.record import environment, write_env
from moegraft.report.items import components_of, configuration_order, is_composition

HOST = "host"


def configuration_name(text: str) -> str:
    """`experts+router` as `router+experts`: the name that a sweep gives the same components.

    Raises:
        RecipeError: not `host`, `donor`, or components joined by `+`.
    """
    name = "+".join(sorted(components_of(text.strip()), key=configuration_order)) or HOST
    if name != "donor" and not is_composition(name):
        raise RecipeError(
            f"--as {text}: expected host, donor, or components joined by +, such as router+experts"
        )
    return name


def write_factorial(
    results: Mapping[str, Results],
    run_dir: Path,
    *,
    different_prompts: bool = False,
    command: str | None = None,
) -> Pairing:
    """Write results of other programs as a run, so that every report and analysis reads them.

    Args:
        results: by configuration; `host` must be among them.
        run_dir: a folder that is missing or empty.
        different_prompts: as in `pair`.
        command: the command line, for the report.

    Raises:
        RecipeError: there is no host.
        ResultsError: as `pair`.
        OutputError: the folder holds something.
    """
    if HOST not in results:
        raise RecipeError(
            f"--as: no {HOST} among {', '.join(results)}; everything is compared to it"
        )
    named = [replace(one, model=name) for name, one in results.items()]
    pairing = pair(named, different_prompts=different_prompts)
    if run_dir.exists() and any(run_dir.iterdir()):
        raise OutputError(f"{run_dir} is not empty; choose another --out")
    conditions = [one.condition for one in pairing.conditions]
    for one in named:
        for about in pairing.conditions:
            cells = [other.cells[about.condition] for other in named]
            rows = [_row(item, one.cells[about.condition][item], cells) for item in about.items]
            store.write_rows(store.cell_path(run_dir, one.model, about.condition), rows)
    env = environment() | {
        "kind": "import",
        "host": results[HOST].source,
        "donor": results["donor"].source if "donor" in results else "donor",
        "sources": {name: one.source for name, one in results.items()},
        "command": command,
        "unpaired_configurations": [],
        "conditions": {
            about.condition: {"primary": about.metric, "num_total": len(about.items)}
            for about in pairing.conditions
        },
        "notes": [
            "made from results of other programs: "
            + ", ".join(f"{name} from {one.source}" for name, one in results.items()),
            *pairing.notes,
        ],
    }
    write_env(run_dir, env)
    recipe = {"conditions": conditions, "limit": "all"}
    store.write_atomically(run_dir / "recipe.yaml", (json.dumps(recipe) + "\n").encode())
    store.write_atomically(run_dir / "DONE", b"")
    return pairing


def _row(item: str, row: Row, cells: Sequence[Mapping[str, Row]]) -> dict[str, Any]:
    """A row as a run has it; its prompt is the first configuration's, which `pair` compared."""
    prompts = cells[0][item].get("prompts") or {}
    known = next((prompts[kind] for kind in ("text", "ids", "given") if prompts.get(kind)), None)
    cluster = next((c[item]["cluster"] for c in cells if c[item].get("cluster")), None)
    return {
        "item": item,
        "score": float(row["score"]),
        "scores": row.get("scores") or {"score": float(row["score"])},
        "prompt": known,
        "cluster": cluster,
        "output": row.get("output"),
        "extracted": row.get("extracted"),
        "gold": row.get("gold") or "",
        "gold_logprob": row.get("gold_logprob"),
        "num_prompt_tokens": row.get("num_prompt_tokens") or 0,
        "num_tokens": row.get("num_tokens"),
        "truncated": row.get("truncated"),
        "looped": row.get("looped"),
        "key": "imported",
    }
