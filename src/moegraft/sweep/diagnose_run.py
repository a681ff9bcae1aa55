"""Diagnose a run directory: its checkpoints and configurations on its own prompts and answers."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moegraft.errors import IncompatibleError, OutputError, RecipeError, RunError
from moegraft.evals import store
from moegraft.evals.condition import Condition
from moegraft.evals.execution import Execution
from moegraft.evals.judge import format_warning
from moegraft.evals.record import fingerprint_checkpoint, read_env
from moegraft.evals.texts import Text, condition_texts, read_domains
from moegraft.sweep.design import DONOR, SweepRecipe
from moegraft.sweep.record import recipe_of_run
from moegraft.transfer.recipe import HOST

NUM_TEXTS = 200
"""Items per condition that are read, at most."""


@dataclass(frozen=True, slots=True)
class Material:
    """On what a run is diagnosed."""

    limit: int = NUM_TEXTS
    """Items per condition, the first of the run's order."""
    conditions: tuple[str, ...] = ()
    """Of the run's; empty for all of them."""
    texts: tuple[str, ...] = ()
    """Files, folders or tasks to read instead of the run's conditions (see `read_domains`)."""
    fields: tuple[str, ...] = ("text",)
    """Of the records of `.jsonl` files."""
    max_tokens: int = 20_000
    """Of each of `texts`."""

    def __post_init__(self) -> None:
        if self.limit < 1 or self.max_tokens < 2:
            raise RecipeError(
                f"limit {self.limit}, max_tokens {self.max_tokens}: expected at least one item "
                "and two tokens"
            )
        if self.texts and self.conditions:
            raise RecipeError("conditions have no effect with other texts; drop one of them")


def diagnose_run(
    run_dir: Path | str,
    material: Material | None = None,
    execution: Execution | None = None,
    *,
    on_step: Callable[[int, int], None] = lambda num_done, num_texts: None,
) -> dict[str, Any]:
    """Diagnose a run of `sweep`, finished or not, and write `diagnose.json` into it.

    The checkpoints are loaded as the sweep did, in the same dtype; a prompt must have the hash
    under which the run scored it.

    Args:
        run_dir: of the sweep.
        material: what to read.
        execution: where to compute, and where the tasks' data is.
        on_step: called after each batch with the number of texts read, and of all.

    Returns:
        What stands in diagnose.json; see `diagnose.diagnose`.

    Raises:
        RunError: no run stands there, or its prompts have changed since.
        MoegraftError: a checkpoint, task or text cannot be used.
    """
    from moegraft.runtime import Host
    from moegraft.sweep.diagnose import diagnose, diagnosed_configurations

    run_dir, wanted = Path(run_dir), material or Material()
    where = execution or Execution()
    recipe = recipe_of_run(run_dir).resolved()
    env = read_env(run_dir)
    conditions = _conditions(run_dir, recipe, wanted.conditions)
    host = Host.load(
        recipe.host,
        {DONOR: recipe.donor, **recipe.donors},
        device=where.device,
        device_map=where.device_map,
        dtype=env["dtype"],
        memory_budget_bytes=where.memory_budget_bytes,
    )
    _check_checkpoints(run_dir, env, host)
    notes: list[str] = []
    if wanted.texts:
        texts = _other_texts(recipe, wanted, where, host.tokenizer)
    else:
        loaded = [_own_condition(recipe, wanted, where, host.tokenizer, c) for c in conditions]
        texts = {condition.name: condition_texts(condition) for condition in loaded}
        notes = [note for condition in loaded for note in _check_prompts(run_dir, condition)]
    found = diagnose(
        host,
        diagnosed_configurations(recipe),
        texts,
        batch_tokens=where.batch_tokens,
        seed=recipe.seed,
        on_step=on_step,
    )
    found["notes"] = notes
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n"
    try:
        store.write_atomically(run_dir / "diagnose.json", text.encode())
    except OSError as error:
        raise OutputError(f"{run_dir}: diagnose.json not written: {error.strerror}") from None
    return found


def _conditions(run_dir: Path, recipe: SweepRecipe, wanted: Sequence[str]) -> Sequence[str]:
    unknown = [name for name in wanted if name not in recipe.conditions]
    if unknown:
        known = ", ".join(recipe.conditions)
        raise RunError(f"{run_dir}: no condition {unknown[0]!r}; the run has: {known}")
    return wanted or recipe.conditions


def _check_checkpoints(run_dir: Path, env: Mapping[str, Any], host: Any) -> None:
    if host.tokenizer is None:
        raise IncompatibleError(f"{host.checkpoint.source} has no tokenizer to read texts with")
    for name, known in env["checkpoints"].items():
        checkpoint = host.checkpoint if name == HOST else host.donor_checkpoints[name]
        now = fingerprint_checkpoint(checkpoint, host.component_hashes(name))
        if now["content"] != known["content"]:
            raise RunError(
                f"{run_dir}: {name} {checkpoint.source} has other weights than the run evaluated; "
                "run the sweep again in another directory"
            )


def _own_condition(
    recipe: SweepRecipe, wanted: Material, where: Execution, tokenizer: Any, name: str
) -> Condition:
    from moegraft.evals.harness import load_condition

    limit = wanted.limit if isinstance(recipe.limit, str) else min(wanted.limit, recipe.limit)
    return load_condition(
        name,
        tokenizer=tokenizer,
        data_dir=where.data_dir,
        include=where.include,
        limit=limit,
        seed=recipe.seed,
        chat_template=recipe.chat_template,
        chat_template_kwargs=recipe.chat_template_kwargs,
    )


def _check_prompts(run_dir: Path, condition: Condition) -> list[str]:
    """Refuse prompts that are not those of the run, and say what makes the losses doubtful.

    Items that the run has not scored yet may come.
    """
    rows = {name: store.read_rows(run_dir, name, condition.name) for name in (HOST, DONOR)}
    known = [item for item in condition.items if item.hash in rows[HOST]]
    changed = [item for item in known if rows[HOST][item.hash]["prompt"] != item.prompt_hash]
    if changed or (rows[HOST] and not known):
        what = f"item {changed[0].hash} has another prompt" if changed else "no item is the same"
        raise RunError(
            f"{run_dir}: {condition.name}: {what} than in the run; diagnose needs the task, the "
            "data and the versions of the sweep"
        )
    doubt = format_warning(condition, {name: list(own.values()) for name, own in rows.items()})
    return [] if doubt is None else [doubt]


def _other_texts(
    recipe: SweepRecipe, wanted: Material, where: Execution, tokenizer: Any
) -> dict[str, list[Text]]:
    return read_domains(
        wanted.texts,
        tokenizer,
        max_tokens=wanted.max_tokens,
        limit=wanted.limit,
        fields=wanted.fields,
        data_dir=where.data_dir,
        include=where.include,
        seed=recipe.seed,
        chat_template=recipe.chat_template,
    )
