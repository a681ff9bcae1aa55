"""Train a branch in stages, each with its own freeze set, and prove that nothing else moved.

By default what opens follows the paper's text (arXiv:2604.18473): nothing shared in mid-training,
embedding and output head in supervised finetuning, everything shared in reinforcement learning;
the anchor's expert and its router row never. `as_released` follows the authors' scripts instead
(`bar.opened` says where they differ).

Departures from the paper: a small run has smaller batches (`stages.LEAST_STEPS`); prompts that are
solved nearly always are drawn again (the authors leave them out); reinforcement learning samples
and learns in turn (theirs overlap).
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import Tensor

from moegraft.bar.branches import Branch, open_branch
from moegraft.bar.card import branch_bases, write_branch_card
from moegraft.bar.entries import computed, copied
from moegraft.bar.manifest import Manifest, write_manifest
from moegraft.bar.names import named_pieces
from moegraft.bar.opened import check_level, expert_rows, level_of, num_opened, trainable
from moegraft.bar.reach import measure_reach, starts_silent
from moegraft.bar.stages import AdaptRecipe, StageRecipe
from moegraft.bar.training import Job, check_data, train_stage
from moegraft.bar.verify import check_stored
from moegraft.bar.write import write_model
from moegraft.checkpoint.card import stated_licence
from moegraft.checkpoint.staging import check_apart, sole_writer
from moegraft.checkpoint.writer import Entry
from moegraft.config import dump_recipe
from moegraft.errors import (
    BranchError,
    OutputError,
    RecipeError,
    RunError,
    TrainDataError,
    TrainingError,
)
from moegraft.families import Key
from moegraft.runtime.load import from_pretrained, resolved_dtype
from moegraft.runtime.placement import find_device
from moegraft.runtime.tokens import load_tokenizer
from moegraft.train.freeze import Freeze, Trainable, freeze
from moegraft.train.lowrank import LowRank, add_low_rank

RECIPE = "recipe.yaml"
RESULT = "branch"
"""In the run's folder: the branch after its last stage."""

OnStage = Callable[[str, int, int], None]
"""Called after each step with (stage, steps done, steps in all)."""
_log = logging.getLogger(__name__)


def adapt(recipe: AdaptRecipe, out: str | Path, *, on_step: OnStage | None = None) -> Manifest:
    """Run the stages of `recipe`; called again after an interruption, go on where it stopped.

    Under `accelerate launch` mid-training and finetuning share each batch among the processes; the
    first one writes.

        OUT/recipe.yaml                      the recipe, every default written out
        OUT/stages/1-mid/train/              metrics.jsonl and checkpoints of the stage
        OUT/stages/1-mid/branch/             the branch after the stage
        OUT/branch/                          the branch after the last stage

    After each stage every frozen byte is compared with its hash, in memory and, of what must never
    move, on disk; the stage is then added to branch.json.

    Args:
        recipe: branch and stages.
        out: the run's folder.
        on_step: told about progress.

    Returns:
        The manifest of the last branch.

    Raises:
        BranchError: the branch is none, has no tokenizer, or a frozen tensor of it has moved.
        RecipeError: a stage opens what the branch does not have, or cannot run in several
            processes.
        TrainDataError: a stage's data are empty or cannot be read; names the stage.
        TrainingError: a loss or gradient is not finite; names the stage; checkpoints stay.
        FrozenMovedError: something frozen has moved; no branch is written.
        RunError: `out` holds another run, or another process works in it.
        OutputError: `out` lies in or around the branch, or cannot be written.
    """
    out = Path(out).expanduser()
    _check_processes(recipe)
    processes = PartialState(cpu=find_device(recipe.device).type == "cpu")
    with ExitStack() as held:
        with processes.main_process_first():
            branch = open_branch(recipe.branch)
            check_apart(out, [branch.folder])
            if not recipe.as_released:
                check_stored(branch)
            stages = _stages(recipe, branch)
            for stage in stages:
                check_level(_level(stage, branch, recipe), branch)
                check_data(stage)
            if processes.is_main_process:
                _claim(out, recipe)
                held.enter_context(sole_writer(out))
        for number, stage in enumerate(stages, 1):
            folder = out / "stages" / f"{number}-{stage.stage}"
            result = out / RESULT if number == len(stages) else folder / RESULT
            if not result.exists():
                tell = partial(on_step, stage.stage) if on_step is not None else None
                _run_stage(branch, stage, recipe, (folder / "train", result), tell)
            branch = _next(branch, result)
    return branch.manifest


def plan_adapt(recipe: AdaptRecipe) -> list[dict[str, Any]]:
    """What each stage will open and how it will train, from headers alone; one row a stage.

    Raises:
        BranchError: the branch is none.
        RecipeError: a stage opens what the branch does not have.
    """
    branch = open_branch(recipe.branch)
    total = sum(prod(stored.shape) for stored in branch.checkpoint.pieces().values())
    rows = []
    for stage in _stages(recipe, branch):
        level = _level(stage, branch, recipe)
        check_level(level, branch)
        lengths = {n: getattr(stage, n) for n in ("steps", "tokens", "epochs") if getattr(stage, n)}
        rows.append(
            {
                "stage": stage.stage,
                "opens": level,
                "open": num_opened(branch, level),
                "of": total,
                "lora": stage.lora,
                **(lengths or {"epochs": stage.preset.epochs}),
                "learning_rate": stage.learning_rate or stage.preset.learning_rate,
                "scheduler": stage.scheduler or stage.preset.scheduler,
                "length": stage.length or stage.preset.length,
                "batch": stage.batch,
                **({"reach": _reach(stage)} if starts_silent(branch) else {}),
                "data": [*stage.data],
                "general": [*stage.general],
            }
        )
    return rows


def _stages(recipe: AdaptRecipe, branch: Branch) -> tuple[StageRecipe, ...]:
    """The recipe's stages, with what an appended expert that starts silent needs to be reached."""
    if not starts_silent(branch):
        return recipe.stages
    return tuple(stage.reaching() for stage in recipe.stages)


def _reach(stage: StageRecipe) -> dict[str, Any]:
    return {"balance_loss": stage.balance_loss, "epsilon": stage.epsilon}


def _level(stage: StageRecipe, branch: Branch, recipe: AdaptRecipe) -> Any:
    return stage.open or level_of(stage.stage, branch, as_released=recipe.as_released)


def _check_processes(recipe: AdaptRecipe) -> None:
    """Raise RecipeError for what several processes cannot do."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return
    for stage in recipe.stages:
        if stage.stage in ("dpo", "rl"):
            raise RecipeError(
                f"stage {stage.stage} runs in one process; mid and sft are shared among several"
            )
    for kind in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true":
            raise RecipeError(
                f"bar adapt holds the whole model in each process, and cannot be launched with "
                f"{kind}; shard in a loop of your own with moegraft.train.freeze, then verify"
            )


def _next(before: Branch, result: Path) -> Branch:
    """The branch that a stage made of `before`.

    Raises:
        RunError: it was made of another one, which stood there when the stage ran.
    """
    after = open_branch(result)
    made, told = after.manifest.as_dict(), before.manifest.as_dict()
    same = all(made[key] == told[key] for key in ("domain", "anchor", "frozen", "shared", "tokens"))
    if not same or made["stages"][: len(told["stages"])] != told["stages"]:
        raise RunError(
            f"{result}: was trained from another branch than the one at {before.folder} now; name "
            "another folder for this run"
        )
    return after


def _claim(out: Path, recipe: AdaptRecipe) -> None:
    """Write the recipe into the run's folder, or check that it is the one that stands there."""
    file, text = out / RECIPE, dump_recipe(recipe)
    try:
        if file.exists():
            if file.read_text(encoding="utf-8") != text:
                raise RunError(f"{out}: holds a run of another recipe; name another folder")
            return
        if out.exists() and any(out.iterdir()):
            raise RunError(f"{out}: is not empty and holds no run; name another folder")
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        if isinstance(error, RunError):
            raise
        raise OutputError(f"{out}: cannot be written ({error.strerror})") from None


def _run_stage(
    branch: Branch,
    stage: StageRecipe,
    recipe: AdaptRecipe,
    places: tuple[Path, Path],
    on_step: Callable[[int, int], None] | None,
) -> None:
    """Train one stage in the first of `places` and write its branch to the second."""
    work, result = places
    processes = PartialState()
    model, tokenizer = _load(branch, recipe)
    level = _level(stage, branch, recipe)
    opened = trainable(model, branch, level)
    low_rank, frozen = _freeze(model, branch, stage, opened, recipe.seed)
    num_open = frozen.num_open()
    _log.info("%s opens %d of %d numbers", stage.stage, num_open, model.num_parameters())
    how = {
        "seed": recipe.seed,
        "use_cpu": model.device.type == "cpu",
        "bf16": recipe.bf16,
        "gradient_checkpointing": recipe.gradient_checkpointing,
    }
    is_appended = branch.manifest.kind == "appended"
    reach = partial(measure_reach, model, branch) if is_appended else None
    place_of = branch.checkpoint.family.place
    opening = {name: place_of(name) for name in (*opened.whole, *opened.rows)}
    routers = {n: own.layer or 0 for n, own in opening.items() if own.component == "router"}
    silent = starts_silent(branch)
    job = Job(stage, model, tokenizer, work, frozen.prepare, on_step, how, reach, routers, silent)
    try:
        trained = train_stage(job)
    except (TrainDataError, TrainingError) as error:
        raise type(error)(f"stage {stage.stage}: {error}") from error
    frozen.check()
    if low_rank is not None:
        low_rank.fold()
    about = {
        "stage": stage.stage,
        "opened": level,
        "as_released": recipe.as_released,
        "trained_numbers": num_open,
        "lora": stage.lora,
        "devices": processes.num_processes,
    }
    if processes.is_main_process:
        _write(branch, model, opened, branch.manifest.with_stage({**about, **trained}), result)
        for checkpoint in work.glob("checkpoint-*"):  # of no use once the branch is there
            shutil.rmtree(checkpoint)
    processes.wait_for_everyone()


def _load(branch: Branch, recipe: AdaptRecipe) -> tuple[Any, Any]:
    own = PartialState().device
    device = own if recipe.device == "auto" else find_device(recipe.device)
    assert device is not None
    tokenizer = load_tokenizer(branch.checkpoint)
    if tokenizer is None:
        raise BranchError(f"{branch.folder}: has no tokenizer, and cannot be trained without one")
    dtype = resolved_dtype(recipe.dtype, branch.checkpoint, {})
    experts = "eager" if device.type == "cpu" else "grouped_mm"
    return from_pretrained(branch.checkpoint, dtype, experts, device), tokenizer


def _freeze(
    model: Any, branch: Branch, stage: StageRecipe, opened: Trainable, seed: int
) -> tuple[LowRank | None, Freeze]:
    """Freeze `model`; with `lora`, the factors train in place of the experts."""
    model.train()
    if stage.lora is None:
        return None, freeze(model, opened)
    experts = expert_rows(opened, branch)
    low_rank = add_low_rank(model, experts, stage.lora, seed=seed)
    others = {name: chosen for name, chosen in opened.rows.items() if name not in experts}
    return low_rank, freeze(model, Trainable((*opened.whole, *low_rank.names), others))


def _write(branch: Branch, model: Any, opened: Trainable, manifest: Manifest, result: Path) -> None:
    """Write the trained branch: what was frozen byte for byte, the rest from the live model."""
    entries = [*_entries(branch, model, opened)]

    def finish(folder: Path) -> None:
        write_manifest(folder, manifest)
        old = branch.checkpoint
        given = stated_licence(old), branch_bases(branch)
        write_branch_card(folder, manifest, *given, num_experts=old.num_experts)
        if all(stage.get("opened") != "everything" for stage in manifest.stages):
            check_stored(open_branch(folder))

    result.parent.mkdir(parents=True, exist_ok=True)
    write_model(
        result,
        entries,
        branch.checkpoint.config,
        branch.checkpoint,
        inputs=[branch.folder],
        finish=finish,
    )


def _entries(branch: Branch, model: Any, opened: Trainable) -> Iterator[Entry]:
    live = dict(_live_pieces(branch, model, opened))
    for name, stored in named_pieces(branch.checkpoint).items():
        tensor = live.get(stored.piece.key)
        if tensor is None:
            yield copied(name, stored)
        else:
            yield computed(name, stored.dtype, stored.shape, lambda t=tensor: t.cpu())


def _live_pieces(branch: Branch, model: Any, opened: Trainable) -> Iterator[tuple[Key, Tensor]]:
    """Every piece of the live model that was open, by canonical key."""
    family = branch.checkpoint.family
    named = dict(model.named_parameters(remove_duplicate=False))
    for name in (*opened.whole, *opened.rows):
        tensor = named[name].detach()
        size = tensor.element_size()
        place = family.place(name)
        for piece in family.pieces(name, tensor.shape, tensor.numel() * size):
            chosen = opened.rows.get(name)
            if place.component == "experts" and chosen and piece.key.expert not in chosen:
                continue
            first = piece.offset // size
            run = tensor.reshape(-1)[first : first + piece.nbytes // size]
            yield piece.key, run.reshape(piece.shape)
