"""Reinforcement learning with verifiable rewards (TRL's GRPOTrainer)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from moegraft.train.data import Record, dataset
from moegraft.train.options import TrainOptions
from moegraft.train.verifiers import rewards


def answer_reward(
    completions: list[Any], kind: list[str], gold: list[str], **_: Any
) -> list[float | None]:
    """The reward TRL asks for: 1 where the verifier of the prompt's kind accepts the completion."""
    return [*rewards([turns[0]["content"] for turns in completions], kind, gold)]


def train_grpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Iterable[Record],
    options: TrainOptions,
    *,
    work: Path,
    num_generations: int = 8,
    max_new_tokens: int = 96,
    temperature: float = 1.0,
    beta: float = 0.0,
) -> float:
    """Train `model` in place to answer `tasks` rightly.

    Args:
        model: The policy.
        tokenizer: Its tokenizer, with a chat template.
        tasks: Records of `data.task`.
        options: Steps, batch (completions a step: a multiple of `num_generations`), rate, seed.
        work: A folder for the trainer; nothing of use is left there.
        num_generations: Completions a prompt, compared with one another.
        max_new_tokens: Length at which a completion is cut.
        temperature: Of sampling.
        beta: Weight of the divergence from the start; 0 needs no reference model.

    Returns:
        The mean reward over the last tenth of the logged steps.
    """
    arguments = options.arguments(work) | {
        "num_generations": num_generations,
        "max_completion_length": max_new_tokens,
        "temperature": temperature,
        "beta": beta,
        # The load-balancing loss of transformers cannot take the padding of generation.
        "router_aux_loss_coef": 0.0,
    }
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=answer_reward,
        args=GRPOConfig(**arguments),
        train_dataset=dataset(tasks),
        processing_class=tokenizer,
    )
    trainer.train()
    seen = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    tail = seen[-max(1, len(seen) // 10) :]
    return sum(tail) / max(1, len(tail))
