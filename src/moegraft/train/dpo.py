"""Direct preference optimisation on comparisons (TRL's DPOTrainer)."""

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from moegraft.train.data import Record, dataset
from moegraft.train.loop import ExactTrainer, OnStep, Prepare
from moegraft.train.options import TrainOptions
from moegraft.train.trl_run import checked, mean_of_tail, run_records


class _Dpo(ExactTrainer, DPOTrainer):
    pass


def train_dpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    preferences: Iterable[Record],
    options: TrainOptions,
    *,
    work: Path,
    beta: float = 0.1,
    max_length: int = 512,
    prepare: Prepare | None = None,
    on_step: OnStep | None = None,
) -> float:
    """Train `model` in place to prefer the chosen responses; its start is the reference.

    Called again after an interruption, with the model as it started, it goes on from the last
    checkpoint, on the same trajectory.

    Args:
        model: The policy.
        tokenizer: Its tokenizer, with a chat template.
        preferences: Records of `data.preference`.
        options: Steps, batch, rate, seed.
        work: The training's own folder: `metrics.jsonl` and checkpoints.
        beta: How strongly the policy is held to the reference.
        max_length: Tokens a record is cut to.
        prepare: Called with the model and its optimizer, e.g. `Freeze.prepare`.
        on_step: Told about progress.

    Returns:
        The mean of the logged losses.

    Raises:
        TrainDataError: there is no comparison.
        TrainingError: the loss or a gradient is not finite; the last checkpoint stays.
        RunError: `work` holds another training.
    """
    records = checked(dataset(preferences), "comparison")
    trainer = _Dpo(
        model=model,
        ref_model=deepcopy(model),
        args=DPOConfig(
            **options.arguments(work),
            beta=beta,
            max_length=max_length,
            include_num_input_tokens_seen="non_padding",
        ),
        train_dataset=records,
        processing_class=tokenizer,
    )
    about = {"stage": "dpo", "options": options, "beta": beta, "max_length": max_length}
    rows = run_records(trainer, records, about, prepare=prepare, on_step=on_step)
    return mean_of_tail(rows, "loss", 1.0)
