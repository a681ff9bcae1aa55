"""Synthetic run directories with known effects."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CONFIGURATIONS = (
    "host",
    "donor",
    "router",
    "attention",
    "experts",
    "router+attention",
    "router+experts",
    "attention+experts",
    "router+attention+experts",
)
EFFECTS = {
    "nano_math/cot": (0.40, {"router": 0.0, "attention": 0.0, "experts": 0.30}),
    "nano_reading/0-shot": (0.70, {"router": 0.0, "attention": 0.0, "experts": 0.0}),
    "nano_science/0-shot": (0.60, {"router": 0.0, "attention": 0.0, "experts": -0.25}),
    "nano_science/5-shot": (0.55, {"router": 0.0, "attention": 0.15, "experts": 0.0}),
}
"""condition -> the host's accuracy, and what each of the donor's components adds to it."""


def row(item: str, score: float, **other: Any) -> dict[str, Any]:
    """One row of the layout that evals/store.py writes."""
    return {
        "item": item,
        "score": score,
        "scores": {"exact_match": score},
        "prompt": f"prompt-{item}",
        "cluster": None,
        "output": f"I think step by step. The answer is {item}.",
        "extracted": item if score else None,
        "gold": item,
        "gold_logprob": score - 3.0,
        "num_prompt_tokens": 10,
        "num_tokens": 5,
        "truncated": False,
        "looped": False,
        "key": "00",
    } | other


def write_cell(path: Path, kind: str, name: str, condition: str, rows: list[Any]) -> None:
    file = path / kind / name / f"{condition}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))


def write_run(path: Path, *, num_items: int = 300, confirm: int = 0, seed: int = 0) -> Path:
    """A finished run of the paper preset; items agree between configurations on 4 of 5 items."""
    rng = np.random.default_rng(seed)
    size = max(num_items, confirm)
    for condition, (base, gains) in EFFECTS.items():
        shared = rng.random(size)
        task = condition.partition("/")[0]
        for name in CONFIGURATIONS:
            moved = gains if name == "donor" else [] if name == "host" else name.split("+")
            rate = base + sum(gains[component] for component in moved)
            latent = np.where(rng.random(size) < 0.8, shared, rng.random(size))
            rows = [
                row(f"{task}-{place:04d}", float(one < rate)) for place, one in enumerate(latent)
            ]
            write_cell(path, "items", name, condition, rows[:num_items])
            if name == "host":
                write_cell(path, "control", name, condition, rows[:num_items])
            if confirm and name in ("host", "donor", "experts"):
                write_cell(path, "confirm", name, condition, rows)
    env = {"schema": 1, "host": "nano:sft-dpo", "donor": "nano:rlvr", "device": "cpu", "seed": 0}
    recipe = f"preset: paper\nlimit: {num_items}\nconditions: [{', '.join(EFFECTS)}]\n"
    (path / "env.json").write_text(json.dumps(env))
    (path / "recipe.yaml").write_text(recipe)
    (path / "DONE").write_text("")
    return path


@pytest.fixture(scope="session")
def paper_run(tmp_path_factory) -> Path:
    """A finished run with planted effects and full sets of three configurations (do not write)."""
    return write_run(tmp_path_factory.mktemp("runs") / "paper", confirm=600)


@pytest.fixture(scope="session")
def paper_summary(paper_run) -> dict[str, Any]:
    from moegraft.report.summary import summarize

    return summarize(paper_run)


@pytest.fixture(scope="session")
def build_run():
    """As `make_run`, for fixtures that live longer than one test."""
    return write_run


@pytest.fixture
def make_run():
    """The builder of synthetic runs: `make_run(path, num_items=300, confirm=0, seed=0)`."""
    return write_run


@pytest.fixture
def make_row():
    return row


@pytest.fixture
def put_cell():
    """Replaces the rows of one cell: `put_cell(run, kind, configuration, condition, rows)`."""
    return write_cell
