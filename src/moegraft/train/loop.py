"""What every trainer here adds to transformers': exact resuming, JSONL metrics, finite losses."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState

from moegraft.checkpoint.staging import sole_writer
from moegraft.errors import MoegraftError, OutputError, RunError, TrainingError

METRICS = "metrics.jsonl"
"""In a training's folder: a row per logged step, none twice, also after an interruption."""
_ABOUT = "training.json"
_LIVE = "live.safetensors"
_COMPLETE = "COMPLETE"
_LEFT_OUT = {"epoch", "num_tokens", "num_input_tokens_seen", "train_tokens_per_second"}
"""Not in the metrics: `tokens` says it, and TRL's own counts begin anew after an interruption."""
_log = logging.getLogger(__name__)

Prepare = Callable[[nn.Module, torch.optim.Optimizer], None]
"""Called once with the model and its optimizer, before the optimizer's state is resumed and before
the model is wrapped for several processes: the place for gradient hooks and parameter groups.
`requires_grad` is set before training is called; the optimizer holds no other parameters."""
OnStep = Callable[[int, int], None]
"""Called after each step with (steps done, steps in all)."""


class ExactTrainer(Trainer):
    """A trainer whose checkpoints restore every tensor, and that stops at the first NaN.

    A mixin for transformers' `Trainer` and those of TRL: `class Sft(ExactTrainer, SFTTrainer)`.

    transformers resumes a mixture of experts wrongly: it saves the published tensor names and
    loads them into the fused ones with strict=False, so the experts keep the values they came
    with. Here a checkpoint holds the live names. (Sharded models, whose checkpoints FSDP writes,
    are left to transformers.)
    """

    prepare: Prepare | None = None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer, handed to `prepare` once."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*(() if model is None else (model,)))
        if is_new and self.prepare is not None:
            trained: Any = self.model if model is None else model
            self.prepare(trained, optimizer)
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass.

        Raises:
            TrainingError: its loss is not finite.
        """
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise TrainingError(not_finite(self.state.global_step + 1, "the loss", self.args))
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.is_fsdp_enabled or not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.accelerator.unwrap_model(self.model), str(folder / _LIVE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        file = Path(resume_from_checkpoint) / _LIVE
        if file.is_file():
            load_model(self.accelerator.unwrap_model(model or self.model), str(file))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


class Record(TrainerCallback):
    """Writes the metrics, marks complete checkpoints, watches gradients, tells progress."""

    def __init__(
        self,
        work: Path,
        *,
        tokens_per_step: int | None = None,
        eval_every: int = 0,
        validate: Callable[[], dict[str, float]] | None = None,
        extra: Callable[[], dict[str, float]] | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        """Describe what to record.

        Args:
            work: the training's folder.
            tokens_per_step: over all processes, for the column `tokens`; None where steps differ
                and the trainer counts.
            eval_every: steps between validations; 0 = before the first and after the last step.
            validate: returns losses by name; runs in every process.
            extra: more columns of a row, since the row before; runs in every process.
            on_step: told about progress, in the main process.
        """
        self._file = work / METRICS
        self._tokens_per_step = tokens_per_step
        self._eval_every = eval_every
        self._validate = validate
        self._extra = extra
        self._on_step = on_step
        self._losses: dict[str, float] = {}
        self._begin = 0.0

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Drop what was written behind the checkpoint; validate the start."""
        self._begin = time.perf_counter()
        rows = _read_rows(self._file)
        kept = [row for row in rows if row["step"] <= state.global_step]
        if kept:
            self._begin -= kept[-1]["seconds"]
        if state.is_world_process_zero:
            _write_rows(self._file, kept)
        if self._validate is not None and not state.global_step and not kept:
            self._append(state, {"validation": self._validate()})

    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Stop before a gradient that is no number gets into the weights.

        Raises:
            TrainingError: it does.
        """
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norm: Any = torch.nn.utils.get_total_norm(grads)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # a DTensor
        if not torch.isfinite(norm):
            raise TrainingError(not_finite(state.global_step + 1, "the gradient", args))

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Validate when it is time; log at every checkpoint, so that no window spans one.

        Raises:
            TrainingError: a weight that would be saved is no number.
        """
        step, last = state.global_step, state.global_step >= state.max_steps
        if control.should_save or last:
            if not all(map(_is_finite, (p for p in model.parameters() if p.requires_grad))):
                raise TrainingError(not_finite(step, "a weight", args))
            control.should_log = True
        if self._validate is not None and (
            last or (self._eval_every and step % self._eval_every == 0)
        ):
            self._losses = self._validate()
            control.should_log = True
        if self._on_step is not None and state.is_world_process_zero:
            self._on_step(step, state.max_steps)

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Append a row."""
        logs = logs or {}
        if "loss" not in logs and "reward" not in logs:  # the summary at the end
            return
        row: dict[str, Any] = {
            k: v for k, v in logs.items() if k not in _LEFT_OUT and isinstance(v, int | float)
        }
        if self._extra is not None:
            row |= self._extra()
            if "router_loss" in row:
                row["loss"] -= row["router_loss"]
        if self._losses:
            row["validation"], self._losses = self._losses, {}
        self._append(state, row)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark the checkpoint complete once every process has written its part; keep two."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            work = Path(args.output_dir)
            (work / f"checkpoint-{state.global_step}" / _COMPLETE).touch()
            for old in _complete(work)[:-2]:
                (old / _COMPLETE).unlink()  # first: a kill in between must not leave half of one
                shutil.rmtree(old)

    def _append(self, state: TrainerState, row: Mapping[str, Any]) -> None:
        if not state.is_world_process_zero:
            return
        place: dict[str, Any] = {"step": state.global_step}
        if self._tokens_per_step is not None:
            place["tokens"] = state.global_step * self._tokens_per_step
        elif state.num_input_tokens_seen:
            place["tokens"] = int(state.num_input_tokens_seen)
        seconds = round(time.perf_counter() - self._begin, 3)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**place, **row, "seconds": seconds}) + "\n")


def run(trainer: ExactTrainer, record: Record, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Train, going on from the last complete checkpoint in the trainer's folder.

    Args:
        trainer: with everything it needs.
        record: its metrics.
        about: what is trained on what; a folder that holds another training is refused.

    Returns:
        The rows of the metrics, of every process.

    Raises:
        RunError: the folder holds another training, or another process works in it.
        TrainingError: a loss, gradient or weight is not finite; the last checkpoint stays.
        OutputError: metrics or a checkpoint cannot be written; the last checkpoint stays.
    """
    work = Path(str(trainer.args.output_dir))
    started = int(os.environ.get("WORLD_SIZE", "1"))
    assert trainer.args.world_size == started, "the processes of this training are not connected"
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(record)
    with _written(work), ExitStack() as held:
        with trainer.args.main_process_first(local=False):
            if trainer.args.process_index == 0:
                work.mkdir(parents=True, exist_ok=True)
                held.enter_context(sole_writer(work))
                _claim(work, about)
        start = last_checkpoint(work)
        if start is not None:
            _log.info("training resumes from %s", start)
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
        trainer.accelerator.wait_for_everyone()
    return read_metrics(work)


@contextmanager
def _written(work: Path) -> Iterator[None]:
    """Raise OutputError where `work` cannot be written: a full disk, no permission."""
    try:
        yield
    except (BrokenPipeError, MoegraftError):
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch.save
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise OutputError(
            f"{work}: cannot be written ({reason}); the last complete checkpoint stays, and the "
            "same command goes on from there"
        ) from error


@torch.no_grad()
def _is_finite(parameter: Any) -> bool:
    own = parameter.to_local() if hasattr(parameter, "to_local") else parameter  # a DTensor
    return bool(torch.isfinite(own).all())


def last_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    found = _complete(work)
    return found[-1] if found else None


def read_metrics(work: Path) -> list[dict[str, Any]]:
    """The rows that a training wrote: step, tokens, loss, learning_rate, validation and so on."""
    return _read_rows(work / METRICS)


def weights_digest(model: nn.Module) -> str:
    """Hex sha256 over names and bytes of a model's parameters; about 2 s per 4 GB."""
    found = sha256()
    for name, value in model.state_dict().items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _complete(work: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first."""
    found = [mark.parent for mark in work.glob(f"checkpoint-*/{_COMPLETE}")]
    return sorted(found, key=lambda folder: int(folder.name.rpartition("-")[2]))


def _claim(work: Path, about: Mapping[str, Any]) -> None:
    """Check whose the folder is; remove checkpoints that were cut off."""
    file = work / _ABOUT
    content = json.dumps(about, indent=2, sort_keys=True, default=_plain)
    if file.exists():
        held = file.read_text(encoding="utf-8")
        if held != content:
            old, new = json.loads(held), json.loads(content)
            differ = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            raise RunError(
                f"{work}: holds another training (it differs in {', '.join(differ)}); "
                "name another folder or remove it"
            )
    else:
        aside = file.with_suffix(".tmp")
        aside.write_text(content, encoding="utf-8")
        aside.replace(file)
    for folder in work.glob("checkpoint-*"):
        if not (folder / _COMPLETE).exists():
            shutil.rmtree(folder)


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def not_finite(step: int, what: str, args: Any) -> str:
    """The message of a TrainingError."""
    kept = last_checkpoint(Path(str(args.output_dir)))
    stays = f"the last checkpoint is {kept}" if kept else "there is no checkpoint yet"
    return (
        f"step {step}: {what} is not a finite number, training stopped; {stays}. Lower the "
        "learning rate, or look at the data of this step"
    )


def _read_rows(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    lines = file.read_bytes().split(b"\n")[:-1]  # a last line that was cut off has no end
    return [json.loads(line) for line in lines]


def _write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    aside = file.with_suffix(".tmp")
    aside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    aside.replace(file)
