"""Supervised finetuning on demonstrations, padded, a batch of similar lengths (TRL's SFTTrainer).

For packed chats train `lm.train_lm` on `chats.pack_chats`, which also mixes sources.
"""

from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from moegraft.train.data import Record, dataset
from moegraft.train.loop import ExactTrainer, OnStep, Prepare
from moegraft.train.options import TrainOptions
from moegraft.train.trl_run import checked, mean_of_tail, run_records


class _Sft(ExactTrainer, SFTTrainer):
    pass


def train_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Iterable[Record],
    options: TrainOptions,
    *,
    work: Path,
    max_length: int = 512,
    prepare: Prepare | None = None,
    on_step: OnStep | None = None,
) -> float:
    """Train `model` in place on the responses of `demonstrations`; a batch has similar lengths.

    Prompt and completion come as separate records because TRL cannot mask the user's turns of
    OLMoE's chat template, which has no generation markers. Called again after an interruption it
    goes on from the last checkpoint, on the same trajectory.

    Args:
        model: Any causal model; mixtures of experts keep their load-balancing loss.
        tokenizer: Its tokenizer, with a chat template.
        demonstrations: Records of `data.demonstration`.
        options: Steps, batch, rate, seed.
        work: The training's own folder: `metrics.jsonl` and checkpoints.
        max_length: Tokens a record is cut to.
        prepare: Called with the model and its optimizer, e.g. `Freeze.prepare`.
        on_step: Told about progress.

    Returns:
        The mean of the logged losses.

    Raises:
        TrainDataError: there is no demonstration.
        TrainingError: the loss or a gradient is not finite; the last checkpoint stays.
        RunError: `work` holds another training.
    """
    records = checked(dataset(demonstrations), "demonstration")
    trainer = _Sft(
        model=model,
        args=SFTConfig(
            **options.arguments(work),
            max_length=max_length,
            train_sampling_strategy="group_by_length",
            include_num_input_tokens_seen="non_padding",
        ),
        train_dataset=records,
        processing_class=tokenizer,
    )
    about = {"stage": "sft", "options": options, "max_length": max_length}
    rows = run_records(trainer, records, about, prepare=prepare, on_step=on_step)
    return mean_of_tail(rows, "loss", 1.0)
