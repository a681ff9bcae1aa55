"""Finetune started models on tasks, score them, and compare how they were started over seeds."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, ClassVar

import torch
from transformers import AutoTokenizer

from moegraft.checkpoint.plain import open_plain
from moegraft.checkpoint.staging import staged_output
from moegraft.compare.evaluate import evaluate_models
from moegraft.compare.gather import result_name
from moegraft.compare.imports import Argument, read_results
from moegraft.compare.recipe import EvaluationRecipe
from moegraft.compare.results import pair
from moegraft.compare.table import compare
from moegraft.config import STRICT, recipe_content
from moegraft.errors import RecipeError, RunError
from moegraft.evals import store
from moegraft.evals.condition import Condition
from moegraft.evals.execution import Execution
from moegraft.evals.harness import load_condition
from moegraft.evals.lock import writer_lock
from moegraft.evals.run import Progress
from moegraft.runtime.load import from_pretrained, no_progress_bars
from moegraft.runtime.placement import find_device
from moegraft.train.chats import pack_answers
from moegraft.train.lm import train_lm
from moegraft.train.options import TrainOptions
from moegraft.train.text import Blocks
from moegraft.xpert.gold_answers import compare_gold

Arms = Mapping[str, Sequence[str]]
"""Checkpoints by how they were started, one per seed."""
SUMMARY, RECIPE = "finetuning.json", "recipe.json"
_NOT_OF_TRAINING = ("conditions", "limit")


@dataclass(frozen=True, slots=True)
class Finetuning:
    """How each model is finetuned on each task, and scored.

    The sister papers' numbers are the defaults: AdamW at 3e-5, 8 records, 3 epochs for multiple
    choice (100 for dialogue). Departure: whole records share packed blocks, so `batch` counts
    blocks.

    Raises:
        RecipeError: a number out of range.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    conditions: tuple[str, ...]
    """Tasks with training records, each finetuned on separately."""
    num_epochs: float = 3.0
    batch: int = 8
    """Blocks a step."""
    length: int = 512
    """Tokens of a block; of longer records the end is kept, where the answer stands."""
    learning_rate: float = 3e-5
    warmup_share: float = 0.05
    weight_decay: float = 0.0
    max_records: int | None = None
    """Training records of a task, the first of the seeded order; None for all."""
    limit: int | None = None
    """Items that are scored; None for all."""
    num_saves: int = 4
    """Checkpoints of a training, which an interrupted one resumes from."""

    def __post_init__(self) -> None:
        if not self.conditions:
            raise RecipeError("finetuning: name at least one task with training records")
        for name in ("num_epochs", "batch", "length", "learning_rate", "max_records", "limit"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise RecipeError(f"finetuning: {name}: expected more than 0, got {value}")

    def options(self, num_blocks: int, seed: int) -> TrainOptions:
        """For a task whose training records fill `num_blocks` blocks."""
        num_steps = max(1, math.ceil(self.num_epochs * num_blocks / self.batch))
        return TrainOptions(
            num_steps=num_steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            seed=seed,
            warmup_steps=round(self.warmup_share * num_steps),
            scheduler="cosine",
            weight_decay=self.weight_decay,
            log_every=max(1, num_steps // 50),
            save_every=max(1, num_steps // self.num_saves),
        )


def finetune_arms(
    arms: Arms,
    how: Finetuning,
    out: Path | str,
    *,
    execution: Execution | None = None,
    on_step: Callable[[str, int, int], None] = lambda what, done, total: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Finetune every checkpoint of every arm on every task, score all, compare the arms.

    The models of one seed see the same records in the same order, whatever their arm. The same call
    resumes: trainings from their last checkpoint, scores behind the last item.

    Args:
        arms: two or more, each with two checkpoints (training seeds) or more, as many in each.
        how: tasks, steps, rate.
        out: `training/` (metrics), `models/`, `scores/TASK/` (runs that `moegraft compare` reads)
            and `finetuning.json`.
        execution: device, folder with local data, more task files.
        on_step: called with what is trained, steps done, and steps in all.
        on_progress: called after every scored item.

    Returns:
        The content of `finetuning.json`: by task, each arm's scores and log-probabilities of the
        gold answer by seed, and the comparison of the arms over seeds and items.

    Raises:
        RecipeError: fewer than two arms, other numbers of seeds, or no such device.
        CheckpointError: a checkpoint cannot be opened; nothing is trained then.
        RunError: `out` has models that were finetuned otherwise, or another process writes it.
        EvalDataError: a task without training records, or without data.
        TrainingError: a loss is not finite.
    """
    _check(arms)
    run = _Run(how, Path(out), execution or Execution(), on_step, on_progress)
    find_device(run.execution.device)
    for source in dict.fromkeys(source for own in arms.values() for source in own):
        open_plain(source)  # before the first of them is trained
    found: dict[str, Any] = {"schema": 1, "arms": {name: [*own] for name, own in arms.items()}}
    with writer_lock(run.out, (1, 1)):
        found["tasks"] = {task: run.task(task, arms) for task in how.conditions}
    store.write_atomically(run.out / SUMMARY, (json.dumps(found, indent=1) + "\n").encode())
    return found


def training_blocks(condition: Condition, tokenizer: Any, length: int) -> Blocks:
    """The gold answers of `condition`, each behind its prompt; the loss is taken on answers alone.

    A generated answer ends with EOS; an option that is only ever scored does not.
    """
    end = [tokenizer.eos_token_id] if condition.kind == "generate" else []
    examples = []
    for item in condition.items:
        if item.gold_pair is not None:
            answer = [*item.gold_pair.continuation, *end]
            ids = [*item.gold_pair.context, *answer]
            marks = [False] * len(item.gold_pair.context) + [True] * len(answer)
            examples.append((ids[-length:], marks[-length:]))
    pad = tokenizer.pad_token_id
    return pack_answers(examples, length, tokenizer.eos_token_id if pad is None else pad)


@dataclass(frozen=True, slots=True)
class _Run:
    """One call of `finetune_arms`."""

    how: Finetuning
    out: Path
    execution: Execution
    on_step: Callable[[str, int, int], None]
    on_progress: Callable[[Progress], None]

    def task(self, task: str, arms: Arms) -> dict[str, Any]:
        """Finetune and score every model on one task."""
        models = {}
        for arm, sources in arms.items():
            for seed, source in enumerate(sources):
                name = _name(arm, seed)
                folder = self.out / "models" / _slug(task) / name
                self._check_same(source, self._work(folder))
                if not (folder / "config.json").exists():
                    self._finetune(source, task, seed, folder)
                models[name] = str(folder)
        return self._score(models, arms, task)

    def _check_same(self, source: str, work: Path) -> None:
        """What made a model stands beside its metrics; another recipe must not take it over."""
        file = work / RECIPE
        if file.exists() and json.loads(file.read_text(encoding="utf-8")) != self._about(source):
            raise RunError(
                f"{work}: holds another finetuning (checkpoint, steps, rate or records); name "
                "another --out or remove it"
            )

    def _about(self, source: str) -> dict[str, Any]:
        """What decides how a model is finetuned, beside its task and seed."""
        own = recipe_content(self.how)
        return {"source": source} | {n: v for n, v in own.items() if n not in _NOT_OF_TRAINING}

    def _work(self, folder: Path) -> Path:
        """The training's own folder, of a model's."""
        return self.out / "training" / folder.parent.name / folder.name

    def _finetune(self, source: str, task: str, seed: int, folder: Path) -> None:
        checkpoint = open_plain(source)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
        model = from_pretrained(checkpoint, torch.float32, "eager", torch.device("cpu"))
        model.requires_grad_(True)
        condition = load_condition(
            task,
            tokenizer=tokenizer,
            data_dir=self.execution.data_dir,
            include=self.execution.include,
            limit=self.how.max_records,
            seed=seed,
            chat_template=False,
            training=True,
        )
        blocks = training_blocks(condition, tokenizer, self.how.length)
        what, work = f"{task} {folder.name}", self._work(folder)
        store.write_atomically(work / RECIPE, (json.dumps(self._about(source)) + "\n").encode())
        train_lm(
            model,
            blocks,
            self.how.options(len(blocks), seed),
            work=work,
            on_step=lambda done, total: self.on_step(what, done, total),
        )
        with staged_output(folder, inputs=[checkpoint.path]) as staged, no_progress_bars():
            model.save_pretrained(staged)
            tokenizer.save_pretrained(staged)

    def _score(self, models: Mapping[str, str], arms: Arms, task: str) -> dict[str, Any]:
        folder = self.out / "scores" / _slug(task)
        limit = "all" if self.how.limit is None else self.how.limit
        recipe = EvaluationRecipe(models, (task,), limit=limit, chat_template=False)
        evaluate_models(recipe, folder, self.execution, on_progress=self.on_progress)
        results = read_results(Argument(str(folder)))
        named = {arm: [_name(arm, seed) for seed in range(len(own))] for arm, own in arms.items()}
        public = result_name(task)
        rows = {
            arm: [store.read_rows(folder, name, public) for name in names]
            for arm, names in named.items()
        }
        gold = compare_gold(rows)
        return {"comparison": compare(pair(results), arms=named), "gold_logprob": gold}


def table(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per task and arm: mean and sd over seeds of score and gold log-probability."""
    rows = []
    for task, about in found["tasks"].items():
        (condition,) = about["comparison"]["conditions"]
        for entry in condition["ranking"]:
            gold = about["gold_logprob"]["seeds"].get(entry["model"])
            rows.append(
                {
                    "task": task,
                    "arm": entry["model"],
                    "score": entry["score"],
                    "interval": entry["interval"],
                    "score_sd": stdev(entry["seeds"].values()),
                    "gold_logprob": fmean(gold) if gold else None,
                    "gold_logprob_sd": stdev(gold) if gold else None,
                    "group": entry["group"],
                }
            )
    return rows


def _check(arms: Arms) -> None:
    counts = {name: len(seeds) for name, seeds in arms.items()}
    if len(arms) < 2:
        raise RecipeError(f"finetuning compares two arms or more, got {len(arms)}")
    if len({*counts.values()}) > 1 or min(counts.values()) < 2:
        raise RecipeError(
            f"finetuning: every arm needs the same number of seeds, two or more; got {counts}"
        )


def _name(arm: str, seed: int) -> str:
    return f"{_slug(arm)}-{seed}"


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text)
