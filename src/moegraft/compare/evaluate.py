"""Evaluate whole models into a run directory, one after another: resumable, by any shards."""

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moegraft.compare.recipe import EvaluationRecipe, claim_run
from moegraft.errors import EvalDataError, FamilyError, OutputError
from moegraft.evals import store
from moegraft.evals.begun import forget_unbegun
from moegraft.evals.command import Command, is_command, load_command
from moegraft.evals.execution import Execution, dtype_on
from moegraft.evals.keys import engine_ingredients, tokenizer_hash
from moegraft.evals.lock import merge_lock, writer_lock
from moegraft.evals.record import (
    device_name,
    environment,
    fingerprint_checkpoint,
    write_env,
    write_prompts,
)
from moegraft.evals.run import Cell, Progress, evaluate_cells


@dataclass(frozen=True, slots=True)
class _Run:
    """One call of `evaluate_models`."""

    recipe: EvaluationRecipe
    folder: Path
    how: Execution
    on_progress: Callable[[Progress], None]
    on_note: Callable[[str], None]

    @property
    def limit(self) -> int | None:
        """Items per condition, None for all."""
        return None if isinstance(self.recipe.limit, str) else self.recipe.limit


def evaluate_models(
    recipe: EvaluationRecipe,
    run_dir: Path | str,
    execution: Execution | None = None,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> bool:
    """Evaluate every model under every condition; the same call resumes and extends.

    Rows stand in `run_dir/items/<model>/<condition>.jsonl`. One model is in memory at a time; none
    is loaded for commands alone. Architectures that the catalogue does not know are loaded by
    transformers as they are.

    Returns:
        Whether the run is complete; false only while other shards have items left.

    Raises:
        RunError: the directory belongs to another run or process.
        MoegraftError: a model or condition cannot be used.
    """
    run_dir, how = Path(run_dir), execution or Execution()
    for source in recipe.models.values():
        lost = [name for name in recipe.conditions if _is_server(source) and not is_command(name)]
        if lost:
            raise EvalDataError(f"{source}: a server is asked by commands only, not by {lost[0]}")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{run_dir}: cannot be made: {error.strerror}") from None
    with writer_lock(run_dir, how.shard):
        is_new = not (run_dir / "recipe.yaml").exists()
        try:
            if claim_run(run_dir, recipe):
                return True
            return _evaluate(_Run(recipe, run_dir, how, on_progress, on_note))
        finally:
            if is_new and how.shard == (1, 1):
                forget_unbegun(run_dir)


def _evaluate(run: _Run) -> bool:
    """Evaluate all models; whether nothing is left for another shard."""
    sizes = [size for name in run.recipe.models for size in _evaluate_one(run, name)]
    # Asked at the end: another shard may have finished a model after this one went on.
    complete = all(len(store.read_rows(run.folder, *cell)) >= num for *cell, num in sizes)
    if complete:
        with merge_lock(run.folder):
            store.write_atomically(run.folder / "DONE", b"")
    return complete


def _evaluate_one(run: _Run, name: str) -> list[tuple[str, str, int]]:
    """Evaluate one model; return (model, condition, number of items) of its cells."""
    source = run.recipe.models[name]
    tasks = [condition for condition in run.recipe.conditions if not is_command(condition)]
    with _loaded(source, run) if tasks else _nothing() as host:
        cells = _task_cells(run, name, host, tasks) if tasks else []
        cells += _command_cells(run, name)
        _record(run, name, host, cells)
        evaluate_cells(
            host or _NoHost(),
            cells,
            run.folder,
            limit=run.limit,
            shard=run.how.shard,
            on_progress=run.on_progress,
        )
    return [(name, c.condition.name, len(c.condition.items[: run.limit])) for c in cells]


class _NoHost:
    """Stands in for a model where only commands are run."""

    @contextmanager
    def with_patches(self, patches: Sequence[Any]) -> Iterator[None]:
        yield None


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


@contextmanager
def _loaded(source: str, run: _Run) -> Iterator[Any]:
    """A model in memory, freed when the block is left."""
    import torch

    from moegraft.checkpoint import open_checkpoint
    from moegraft.runtime import Host
    from moegraft.runtime.plain import PlainHost

    how = run.how
    dtype = dtype_on(how.device, run.recipe.dtype)
    host: Any
    try:
        open_checkpoint(source)
    except FamilyError:
        host = PlainHost.load(source, device=how.device, dtype=dtype)
    else:
        budget = how.memory_budget_bytes
        host = Host.load(source, {}, device=how.device, dtype=dtype, memory_budget_bytes=budget)
    try:
        yield host
    finally:
        del host
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _task_cells(run: _Run, name: str, host: Any, tasks: Sequence[str]) -> list[Cell]:
    from moegraft.evals.harness import load_condition
    from moegraft.evals.scorer import Scorer

    recipe, how = run.recipe, run.how
    if host.tokenizer is None:
        raise EvalDataError(f"{recipe.models[name]}: the checkpoint has no tokenizer")
    scorer = Scorer(host, max_tokens=how.batch_tokens, max_rows=how.batch_rows)
    shared = engine_ingredients(host) | {
        "components": {str(unit): digest for unit, digest in host.component_hashes("host").items()},
        "tokenizer": tokenizer_hash(host.checkpoint.tokenizer_files),
    }
    conditions = [
        load_condition(
            task,
            tokenizer=host.tokenizer,
            data_dir=how.data_dir,
            include=how.include,
            limit=run.limit,
            seed=recipe.seed,
            chat_template=recipe.chat_template,
            chat_template_kwargs=recipe.chat_template_kwargs,
        )
        for task in tasks
    ]
    return [Cell(name, one, shared | {"settings": one.settings}, scorer) for one in conditions]


def _command_cells(run: _Run, name: str) -> list[Cell]:
    commands = [condition for condition in run.recipe.conditions if is_command(condition)]
    if not commands:
        return []
    source = run.recipe.models[name]
    model, identity = source, source
    if not _is_server(source):
        from moegraft.checkpoint.plain import folder_digest, locate

        folder = locate(source)
        model, identity = str(folder.resolve()), folder_digest(folder)
    conditions = [load_command(path, limit=run.limit, seed=run.recipe.seed) for path in commands]
    return [
        Cell(name, one, {"model": identity, "settings": one.settings}, Command(model))
        for one in conditions
    ]


def _record(run: _Run, name: str, host: Any, cells: Sequence[Cell]) -> None:
    """Write this model and its conditions into env.json, and the prompts of the first model."""
    notes = list(dict.fromkeys(note for cell in cells for note in cell.condition.notes))
    for note in notes:
        run.on_note(note)
    conditions = {cell.condition.name: cell.condition for cell in cells}
    recipe, run_dir = run.recipe, run.folder
    model: dict[str, Any] = {"source": recipe.models[name]}
    if host is not None:
        model |= fingerprint_checkpoint(host.checkpoint, host.component_hashes("host"))
        model["tokenizer"] = tokenizer_hash(host.checkpoint.tokenizer_files)
    with merge_lock(run_dir):
        env = _old_env(run_dir)
        models = {**env.get("models", {}), name: model}
        tokenizers = {one["tokenizer"] for one in models.values() if "tokenizer" in one}
        about = {
            key: {"num_total": c.num_total, "primary": c.primary, "settings": dict(c.settings)}
            for key, c in conditions.items()
        }
        env = environment() | {
            "kind": "compare",
            "models": models,
            "own_prompts": len(tokenizers) > 1,
            "device": env.get("device") if host is None else device_name(host),
            "dtype": env.get("dtype") if host is None else str(host.dtype).removeprefix("torch."),
            "seed": recipe.seed,
            "command": run.how.command,
            "chat_template": recipe.chat_template,
            "conditions": {**env.get("conditions", {}), **about},
            "notes": list(dict.fromkeys([*env.get("notes", []), *notes])),
        }
        write_env(run_dir, env)
        if name == next(iter(recipe.models)):
            write_prompts(run_dir, list(conditions.values()))


def _old_env(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "env.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _is_server(source: str) -> bool:
    return source.startswith(("http://", "https://"))
