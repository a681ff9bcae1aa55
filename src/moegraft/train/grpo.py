"""Reinforcement learning with verifiable rewards (TRL's GRPOTrainer)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from moegraft.errors import RecipeError, TrainDataError, TrainingError
from moegraft.train.data import Record, dataset
from moegraft.train.grpo_options import GrpoOptions
from moegraft.train.loop import ExactTrainer, OnStep, Prepare, not_finite
from moegraft.train.options import TrainOptions
from moegraft.train.programs import Limits
from moegraft.train.trl_run import checked, mean_of_tail, run_records
from moegraft.train.verifiers import FAILURES, Grader, check_tasks

_LIMITS = Limits()


_DEFAULT = GrpoOptions()


class _Grpo(ExactTrainer, GRPOTrainer):
    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One pass, with sampling before it.

        Raises:
            TrainingError: its loss, or what completions are sampled from, is not finite.
        """
        try:
            return super().training_step(*args, **kwargs)
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            what = "a probability to sample from"
            raise TrainingError(not_finite(self.state.global_step + 1, what, self.args)) from None


def train_grpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Iterable[Record],
    options: TrainOptions,
    *,
    work: Path,
    grpo: GrpoOptions = _DEFAULT,
    limits: Limits = _LIMITS,
    prepare: Prepare | None = None,
    on_step: OnStep | None = None,
) -> float:
    """Train `model` in place to answer `tasks` rightly.

    A verifier that raises or hangs costs its completion the reward; it is counted in the metrics
    (`verifier_failures`) and written to `verifier_failures.jsonl`. Called again after an
    interruption it goes on from the last checkpoint, on the same trajectory.

    Args:
        model: The policy.
        tokenizer: Its tokenizer, with a chat template.
        tasks: Records of `data.task`.
        options: Steps, batch (completions a step: a multiple of `num_generations`), rate, seed.
        work: The training's own folder: `metrics.jsonl` and checkpoints.
        grpo: How completions are sampled and learned from.
        limits: Of programs and of your own verifiers.
        prepare: Called with the model and its optimizer, e.g. `Freeze.prepare`.
        on_step: Told about progress.

    Returns:
        The mean reward over the last tenth of the logged steps.

    Raises:
        TrainDataError: there is no task, or a gold answer does not fit its verifier.
        RecipeError: no such verifier; or a batch that cannot be divided.
        TrainingError: the loss or a gradient is not finite; the last checkpoint stays.
        RunError: `work` holds another training.
    """
    records = checked(dataset(tasks), "task")
    kinds = [str(kind) for kind in records["kind"]]
    check_tasks(zip(kinds, map(str, records["gold"]), strict=True))
    arguments = _arguments(options, grpo, work, len(records))
    with Grader(kinds, work / FAILURES, limits) as grader:
        trainer = _Grpo(
            model=model,
            reward_funcs=_answer_reward(grader, tokenizer),  # pyright: ignore[reportArgumentType]
            args=GRPOConfig(**arguments),
            train_dataset=records,
            processing_class=tokenizer,
        )
        about = {"stage": "grpo", "options": options, "grpo": grpo}
        rows = run_records(
            trainer,
            records,
            about,
            prepare=prepare,
            on_step=on_step,
            extra=lambda: {"verifier_failures": grader.take_failures()},
        )
    return mean_of_tail(rows, "reward", 0.1) / grpo.reward


def _arguments(
    options: TrainOptions, grpo: GrpoOptions, work: Path, num_tasks: int
) -> dict[str, Any]:
    arguments = options.arguments(work)
    if options.batch % grpo.num_generations:
        raise RecipeError(
            f"batch: {options.batch} completions cannot be divided into groups of "
            f"{grpo.num_generations} (num_generations)"
        )
    num_prompts = options.batch * grpo.mini_batches // grpo.num_generations
    if num_tasks < num_prompts:
        raise TrainDataError(
            f"{num_tasks} tasks, but one round of sampling takes {num_prompts}; give more tasks or "
            "a smaller batch"
        )
    if options.save_every % grpo.mini_batches:
        raise RecipeError(
            f"save_every: {options.save_every} is no multiple of mini_batches "
            f"({grpo.mini_batches}); a training resumes where completions are sampled"
        )
    return arguments | {
        "num_generations": grpo.num_generations,
        "max_completion_length": grpo.max_new_tokens,
        "temperature": grpo.temperature,
        "beta": grpo.beta,
        "epsilon": grpo.clip_low,
        "epsilon_high": grpo.clip_high,
        "loss_type": "dapo",
        "scale_rewards": "group" if grpo.scale_rewards else "none",
        "reward_weights": [grpo.reward],
        "steps_per_generation": arguments["gradient_accumulation_steps"] * grpo.mini_batches,
        # The load-balancing loss of transformers cannot take the padding of generation.
        "router_aux_loss_coef": 0.0,
    }


def _answer_reward(grader: Grader, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The reward function that TRL asks for."""
    plain = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]

    def answer_reward(
        completion_ids: list[list[int]], kind: list[str], gold: list[str], **_: Any
    ) -> list[float]:
        # Tokens that a domain has added, such as those around a tool call, stay in the text.
        kept = [[token for token in ids if token not in plain] for ids in completion_ids]
        return grader.rewards([str(tokenizer.decode(ids)) for ids in kept], kind, gold)

    return answer_reward
