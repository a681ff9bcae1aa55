"""Does it help? Train a target from every arm's start on the same blocks; resumable, in a run.

runs/NAME/recipe.yaml
runs/NAME/selection.json windows.jsonl        chosen experts
runs/NAME/knowledge/KIND/                     what arms start from
runs/NAME/trainings/PROTOCOL/ARM/seed-S/      metrics.jsonl
runs/NAME/results/PROTOCOL/ARM/seed-S.json    the curve, and losses of single blocks
runs/NAME/summary.json report.md figures/ DONE
runs/NAME/state/                              which process writes
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from moegraft.config import dump_recipe, load_recipe
from moegraft.errors import MoegraftError, OutputError, RunError
from moegraft.evals.lock import writer_lock
from moegraft.evals.store import write_atomically
from moegraft.train.lm import block_losses, train_lm
from moegraft.train.loop import METRICS
from moegraft.xpert.compare_recipe import CompareRecipe
from moegraft.xpert.outcome import summarise
from moegraft.xpert.prepare import Prepared

RECIPE, MODELS, SUMMARY, DONE = "recipe.yaml", "models", "summary.json", "DONE"


@dataclass(frozen=True, slots=True)
class Step:
    """Progress: training `number` of `total` is at `step` of `num_steps`."""

    number: int
    total: int
    step: int
    num_steps: int
    name: str


OnStep = Callable[[Step], None]


def compare_starts(
    recipe: CompareRecipe, out: Path | str, *, on_step: OnStep = lambda step: None
) -> dict[str, Any]:
    """Train every arm under every protocol and seed, and compare them.

    What is finished is never trained twice; what was interrupted goes on. Started by `accelerate
    launch`, every process calls it.

    Args:
        recipe: what to compare.
        out: the run's folder: new, or of the same recipe.
        on_step: told about progress, in the main process.

    Returns:
        The content of summary.json.

    Raises:
        RunError: `out` holds another comparison, or another process writes it.
        OutputError: `out` cannot be written; what is finished stays.
        RecipeError, IncompatibleError, CheckpointError, EvalDataError, TrainDataError: input that
            cannot be used, found before anything is trained.
        TrainingError: a training diverged.
    """
    out = Path(out)
    state = PartialState(cpu=recipe.device == "cpu")
    with ExitStack() as stack:
        stack.enter_context(_told(out))
        with state.main_process_first():
            _check(recipe, out)
            ready = Prepared(recipe, out)
            ready.check()
            if state.is_main_process:
                stack.enter_context(writer_lock(out, (1, 1)))
                write_atomically(out / RECIPE, dump_recipe(recipe).encode())
            ready.extract()
        return _trained(recipe, ready, on_step)


def _trained(recipe: CompareRecipe, ready: Prepared, on_step: OnStep) -> dict[str, Any]:
    """Train what is not trained yet, and sum up."""
    out, state = ready.out, PartialState()
    for number, (protocol, arm, seed) in enumerate(trainings(recipe), start=1):
        name = f"{protocol} {arm} {seed}"
        step = Step(number, recipe.num_trainings, 0, recipe.training.num_steps, name)
        _train(
            ready, (protocol, arm, seed), lambda now, step=step: on_step(replace(step, step=now))
        )
    state.wait_for_everyone()
    summary = summarise(recipe, _results(recipe, out), ready.about())
    if state.is_main_process:
        _write(out / SUMMARY, summary)
        (out / DONE).touch()
    return summary


def trainings(recipe: CompareRecipe) -> Iterator[tuple[str, str, int]]:
    """Protocol, arm and seed of each; seeds outermost, so that unfinished runs have whole seeds."""
    for seed in range(recipe.num_seeds):
        for protocol in recipe.protocols:
            for arm in recipe.arms:
                yield protocol, arm, seed


@contextmanager
def _told(out: Path) -> Iterator[None]:
    """A full disk, or a folder that cannot be written, in one line."""
    try:
        yield
    except OSError as error:
        if isinstance(error, MoegraftError):
            raise
        raise OutputError(
            f"{out}: cannot be written ({error.strerror or error}); what is finished stays, and "
            "the same command goes on"
        ) from error


def _check(recipe: CompareRecipe, out: Path) -> None:
    file = out / RECIPE
    if file.exists():
        if load_recipe(file, CompareRecipe) != recipe:
            raise RunError(f"{out}: holds another comparison; name another --out or remove it")
    elif out.exists() and not out.is_dir():
        raise OutputError(f"{out}: exists and is no folder; name another one")
    elif out.exists() and any(out.iterdir()):
        raise OutputError(f"{out}: exists and is not empty; name another folder")


def _train(ready: Prepared, what: tuple[str, str, int], on_step: Callable[[int], None]) -> None:
    """One training, unless its result stands there already."""
    protocol, arm, seed = what
    recipe, out = ready.recipe, ready.out
    place = Path(protocol) / arm
    result = out / "results" / place / f"seed-{seed}.json"
    if result.exists():
        on_step(recipe.training.num_steps)
        return
    model = ready.model(protocol, arm, seed)
    work = out / "trainings" / place / f"seed-{seed}"
    train_lm(
        model,
        ready.corpus.train,
        recipe.training.options(seed, use_cpu=recipe.device == "cpu"),
        work=work,
        validation=ready.corpus.validation,
        on_step=lambda now, total: on_step(now),
    )
    if PartialState().is_main_process:
        if recipe.keep_models:
            ready.keep(model, out / MODELS / place / f"seed-{seed}")
        rows = [
            json.loads(line) for line in (work / METRICS).read_text(encoding="utf-8").splitlines()
        ]
        curve = [
            {k: r[k] for k in ("step", "tokens", "validation")} for r in rows if "validation" in r
        ]
        validation = ready.corpus.validation.items()
        blocks = {name: block_losses(model, blocks) for name, blocks in validation}
        content = {"curve": curve, "blocks": blocks}
        _write(result, {"protocol": protocol, "arm": arm, "seed": seed, **content})
        for folder in work.glob("checkpoint-*"):
            shutil.rmtree(folder)


def _results(recipe: CompareRecipe, out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(
            (out / "results" / protocol / arm / f"seed-{seed}.json").read_text(encoding="utf-8")
        )
        for protocol, arm, seed in trainings(recipe)
    ]


def _write(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
