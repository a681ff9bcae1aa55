"""Direct preference optimisation on comparisons (TRL's DPOTrainer)."""

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from moegraft.train.data import Record, dataset
from moegraft.train.options import TrainOptions


def train_dpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    preferences: Iterable[Record],
    options: TrainOptions,
    *,
    work: Path,
    beta: float = 0.1,
    max_length: int = 512,
) -> float:
    """Train `model` in place to prefer the chosen responses; its start is the reference.

    Args:
        model: The policy.
        tokenizer: Its tokenizer, with a chat template.
        preferences: Records of `data.preference`.
        options: Steps, batch, rate, seed.
        work: A folder for the trainer; nothing of use is left there.
        beta: How strongly the policy is held to the reference.
        max_length: Tokens a record is cut to.

    Returns:
        The mean training loss.
    """
    trainer = DPOTrainer(
        model=model,
        ref_model=deepcopy(model),
        args=DPOConfig(**options.arguments(work), beta=beta, max_length=max_length),
        train_dataset=dataset(preferences),
        processing_class=tokenizer,
    )
    return float(trainer.train().training_loss)
