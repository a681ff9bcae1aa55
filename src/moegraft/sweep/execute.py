"""Carry a sweep out: load once, evaluate every cell, the A/A control, and the confirmation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from moegraft.errors import OutputError
from moegraft.evals import store
from moegraft.evals.begun import forget_unbegun
from moegraft.evals.condition import Condition
from moegraft.evals.execution import Execution, dtype_on
from moegraft.evals.judge import format_warning
from moegraft.evals.lock import merge_lock, writer_lock
from moegraft.evals.record import (
    device_name,
    environment,
    fingerprint_checkpoint,
    write_env,
    write_prompts,
)
from moegraft.evals.run import Cell, Progress, evaluate_cells
from moegraft.sweep.confirm import carry_over, choose_confirmed
from moegraft.sweep.design import DONOR, Configuration, SweepRecipe, design
from moegraft.sweep.record import claim_run
from moegraft.transfer.recipe import HOST

CONTROL_ITEMS = 200
"""Items per condition of the A/A control, at most."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A sweep whose models, plans and conditions are in memory."""

    run_dir: Path
    recipe: SweepRecipe
    execution: Execution
    host: Any
    configurations: tuple[Configuration, ...]
    plans: Mapping[str, Any]
    condition_of: Callable[[str, str], Condition]
    on_progress: Callable[[Progress], None]

    @property
    def limit(self) -> int | None:
        """Items per cell, None for all."""
        return None if isinstance(self.recipe.limit, str) else self.recipe.limit


def run_sweep(
    recipe: SweepRecipe,
    run_dir: Path | str,
    execution: Execution | None = None,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> bool:
    """Evaluate every cell of `recipe` into `run_dir`; the same call resumes and extends.

    Models are loaded once; a configuration is a swap. Peak memory is host and donors, or what
    `memory_budget_bytes` allows.

    Args:
        recipe: what to evaluate.
        run_dir: made when missing; must hold nothing, or a run that `recipe` continues.
        execution: where and how.
        on_progress: called after every item.
        on_note: called with sentences that a user should read: tokenizer differences, identical
            configurations, formats that no parent uses.

    Returns:
        Whether the run is complete; false only while other shards have items left.

    Raises:
        RunError: the directory belongs to another run or process.
        MoegraftError: a checkpoint, task or configuration cannot be used.
    """
    run_dir, execution = Path(run_dir), execution or Execution()
    recipe = recipe.resolved()
    configurations = design(recipe)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{run_dir}: cannot be made: {error.strerror}") from None
    with writer_lock(run_dir, execution.shard):
        is_new = not (run_dir / "recipe.yaml").exists()
        try:
            if claim_run(run_dir, recipe):
                return True
            loaded = _load(recipe, configurations, run_dir, execution, on_progress)
            return _evaluate(loaded, on_note)
        finally:
            if is_new and execution.shard == (1, 1):
                forget_unbegun(run_dir)


def _load(
    recipe: SweepRecipe,
    configurations: tuple[Configuration, ...],
    run_dir: Path,
    execution: Execution,
    on_progress: Callable[[Progress], None],
) -> _Loaded:
    from moegraft.evals.harness import load_condition
    from moegraft.runtime import Host
    from moegraft.sweep.cells import plan_configurations

    donors = {DONOR: recipe.donor, **recipe.donors}
    host = Host.load(
        recipe.host,
        donors,
        device=execution.device,
        device_map=execution.device_map,
        dtype=dtype_on(execution.device, recipe.dtype, execution.device_map),
        memory_budget_bytes=execution.memory_budget_bytes,
    )
    plans = plan_configurations(host, configurations)

    @cache
    def condition_of(name: str, speaker: str) -> Condition:
        everything = recipe.confirm or isinstance(recipe.limit, str)
        return load_condition(
            name,
            tokenizer=host.tokenizer if speaker == HOST else host.donor_tokenizers[speaker],
            data_dir=execution.data_dir,
            include=execution.include,
            limit=None if everything else int(recipe.limit),
            seed=recipe.seed,
            chat_template=recipe.chat_template,
            chat_template_kwargs=recipe.chat_template_kwargs,
            repeats=recipe.repeats,
            temperature=recipe.temperature,
            max_gen_toks=recipe.max_gen_toks,
        )

    return _Loaded(
        run_dir, recipe, execution, host, configurations, plans, condition_of, on_progress
    )


def _evaluate(run: _Loaded, on_note: Callable[[str], None]) -> bool:
    from moegraft.sweep.cells import make_cells

    cells = make_cells(
        run.host,
        run.configurations,
        run.plans,
        conditions=run.recipe.conditions,
        condition_of=run.condition_of,
        scorer_of=cache(partial(_scorer, run)),
    )
    _record(run, cells, on_note)
    carry_over(run.run_dir, cells, "confirm", "items", run.limit)
    complete = _score(run, cells, "items", run.limit)
    complete &= _score(
        run, _control_cells(run, cells), "control", min(run.limit or CONTROL_ITEMS, CONTROL_ITEMS)
    )
    if complete and run.recipe.confirm:
        chosen = choose_confirmed(run.run_dir, cells, run.limit, run.recipe.confirm_configurations)
        carry_over(run.run_dir, chosen, "items", "confirm", None)
        complete = _score(run, chosen, "confirm", None)
    if complete:
        _finish(run, cells, on_note)
    return complete


def _score(run: _Loaded, cells: Sequence[Cell], kind: str, limit: int | None) -> bool:
    return evaluate_cells(
        run.host,
        cells,
        run.run_dir,
        limit=limit,
        kind=kind,
        shard=run.execution.shard,
        on_progress=run.on_progress,
    )


def _control_cells(run: _Loaded, cells: Sequence[Cell]) -> list[Cell]:
    """The host once more, after a swap and under another batch plan."""
    swap = next(cell.patches for cell in cells if cell.configuration == DONOR)

    def swap_and_return() -> tuple[()]:
        with run.host.with_patches(swap()):
            return ()

    scorer = _scorer(run, HOST)
    scorer.max_tokens = max(1, scorer.max_tokens // 3)
    scorer.max_rows = max(1, scorer.max_rows // 3)
    return [
        replace(cell, scorer=scorer, patches=swap_and_return)
        for cell in cells
        if cell.configuration == HOST
    ]


def _scorer(run: _Loaded, speaker: str) -> Any:
    from moegraft.evals.scorer import Scorer

    host, how = run.host, run.execution
    tokenizer = host.tokenizer if speaker == HOST else host.donor_tokenizers[speaker]
    return Scorer(host, tokenizer, max_tokens=how.batch_tokens, max_rows=how.batch_rows)


def _record(run: _Loaded, cells: Sequence[Cell], on_note: Callable[[str], None]) -> None:
    """Write env.json and the prompts before the first item is scored."""
    host = run.host
    digests = {cell.configuration: cell.ingredients["components"] for cell in cells}
    identical = {
        name: next(other for other in digests if digests[other] == digests[name])
        for name in digests
    }
    identical = {name: first for name, first in identical.items() if name != first}
    own_tokenizer = host.id_maps_differ[DONOR]
    notes = [*host.tokenizer_differences]
    notes += [f"{a} has the same weights as {b}" for a, b in identical.items()]
    if own_tokenizer:
        notes.append(
            "the donor's tokenizer numbers its tokens differently: the pure donor is scored with "
            "its own, and paired tests with it are withheld"
        )
    notes += dict.fromkeys(note for cell in cells for note in cell.condition.notes)
    for note in notes:
        on_note(note)
    conditions = {cell.condition.name: cell.condition for cell in reversed(cells)}
    env = environment() | {
        "host": run.recipe.host,
        "donor": run.recipe.donor,
        "checkpoints": {
            name: fingerprint_checkpoint(checkpoint, host.component_hashes(name))
            for name, checkpoint in ((HOST, host.checkpoint), *host.donor_checkpoints.items())
        },
        "device": device_name(host),
        "device_map": host.device_map,
        "dtype": str(host.dtype).removeprefix("torch."),
        "seed": run.recipe.seed,
        "command": run.execution.command,
        "chat_template": run.recipe.chat_template,
        "qk_norm": run.recipe.qk_norm,
        "eos_ids": sorted(host.eos_ids),
        "identical_configurations": identical,
        "unpaired_configurations": [DONOR] if own_tokenizer else [],
        "conditions": {
            name: {"num_total": c.num_total, "primary": c.primary, "settings": dict(c.settings)}
            for name, c in sorted(conditions.items())
        },
        "notes": notes,
    }
    with merge_lock(run.run_dir):
        write_env(run.run_dir, env)
        write_prompts(run.run_dir, list(conditions.values()))


def _finish(run: _Loaded, cells: Sequence[Cell], on_note: Callable[[str], None]) -> None:
    """Warn about formats that nobody uses, and write DONE."""
    for condition in {cell.condition.name: cell.condition for cell in reversed(cells)}.values():
        rows = {
            name: list(store.read_rows(run.run_dir, name, condition.name).values())
            for name in (HOST, DONOR)
        }
        warning = format_warning(condition, rows)
        if warning:
            on_note(warning)
    with merge_lock(run.run_dir):
        store.write_atomically(run.run_dir / "DONE", b"")
