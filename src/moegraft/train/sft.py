"""Supervised finetuning on demonstrations (TRL's SFTTrainer)."""

from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from moegraft.train.data import Record, dataset
from moegraft.train.options import TrainOptions


def train_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Iterable[Record],
    options: TrainOptions,
    *,
    work: Path,
    max_length: int = 512,
) -> float:
    """Train `model` in place on the responses of `demonstrations`; a batch has similar lengths.

    Prompt and completion come as separate records because TRL cannot mask the user's turns of
    OLMoE's chat template, which has no generation markers.

    Args:
        model: Any causal model; mixtures of experts keep their load-balancing loss.
        tokenizer: Its tokenizer, with a chat template.
        demonstrations: Records of `data.demonstration`.
        options: Steps, batch, rate, seed.
        work: A folder for the trainer; nothing of use is left there.
        max_length: Tokens a record is cut to.

    Returns:
        The mean training loss.
    """
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **options.arguments(work),
            max_length=max_length,
            train_sampling_strategy="group_by_length",
        ),
        train_dataset=dataset(demonstrations),
        processing_class=tokenizer,
    )
    return float(trainer.train().training_loss)
