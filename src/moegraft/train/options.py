"""What every trainer is told: steps, batch, learning rate and its schedule, when to save."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moegraft.errors import RecipeError

SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Settings that all kinds of training share.

    Raises:
        RecipeError: a value is out of its range.
    """

    num_steps: int
    batch: int
    """Records a step, over all processes; for reinforcement learning, completions a step."""
    learning_rate: float
    seed: int = 0
    warmup_steps: int = 10
    """Steps over which the learning rate rises from zero."""
    scheduler: str = "linear"
    """How it falls afterwards: `linear`, `cosine` or `constant`."""
    final_rate: float = 0.0
    """Where it ends, as a share of `learning_rate`."""
    weight_decay: float = 0.0
    """Of AdamW, for everything but biases and norms."""
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    """Of AdamW, added to the root of the second moment; smaller lets tiny gradients count."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 = no clipping."""
    micro_batch: int | None = None
    """Records that one process holds at once; None for its whole share of `batch`."""
    bf16: bool = False
    """Compute in bfloat16 (autocast); weights and optimizer keep their dtype."""
    gradient_checkpointing: bool = False
    """Recompute activations instead of keeping them: less memory, a third more time."""
    use_cpu: bool = False
    """Stay on the CPU where there is a faster device."""
    log_every: int = 25
    save_every: int = 0
    """Steps between checkpoints, which an interrupted training resumes from; 0 = none."""
    eval_every: int = 0
    """Steps between validations; 0 = only before the first and after the last step."""

    def __post_init__(self) -> None:
        positive = ("num_steps", "batch", "learning_rate", "epsilon", "log_every")
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise RecipeError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise RecipeError(f"micro_batch: expected at least 1, got {self.micro_batch}")
        for name in ("seed", "warmup_steps", "weight_decay", "clip", "save_every", "eval_every"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RecipeError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.scheduler not in SCHEDULES:
            raise RecipeError(f"scheduler: expected {', '.join(SCHEDULES)}, got {self.scheduler!r}")
        if not 0 <= self.final_rate < 1:
            raise RecipeError(f"final_rate: expected a share below 1, got {self.final_rate}")
        if self.final_rate and self.scheduler == "constant":
            raise RecipeError("final_rate has no effect with scheduler: constant; drop it")

    def arguments(self, work: Path) -> dict[str, Any]:
        """Keyword arguments for `TrainingArguments` and any TRL config.

        Raises:
            RecipeError: `batch` cannot be divided among the processes.
        """
        import torch

        micro_batch, accumulation = self._split_batch()
        # Said outright: without it accelerate leaves several processes without a GPU unconnected.
        use_cpu = self.use_cpu or not torch.accelerator.is_available()
        return {
            "output_dir": str(work),
            "max_steps": self.num_steps,
            "per_device_train_batch_size": micro_batch,
            "gradient_accumulation_steps": accumulation,
            "learning_rate": self.learning_rate,
            **self._schedule(),
            "weight_decay": self.weight_decay,
            "adam_beta1": self.betas[0],
            "adam_beta2": self.betas[1],
            "adam_epsilon": self.epsilon,
            "max_grad_norm": self.clip,
            "seed": self.seed,
            "data_seed": self.seed,
            "use_cpu": use_cpu,
            "bf16": self.bf16,
            "gradient_checkpointing": self.gradient_checkpointing,
            "dataloader_pin_memory": False,
            "logging_steps": self.log_every,
            "logging_nan_inf_filter": False,
            "save_strategy": "steps" if self.save_every else "no",
            "save_steps": self.save_every or 500,
            "report_to": "none",
            "disable_tqdm": True,
        }

    def _schedule(self) -> dict[str, Any]:
        kind, extra = self.scheduler, {}
        if kind == "constant":
            kind = "constant_with_warmup"
        elif kind == "cosine" and self.final_rate:
            kind, extra = "cosine_with_min_lr", {"min_lr_rate": self.final_rate}
        elif kind == "linear" and self.final_rate:
            lowest = self.final_rate * self.learning_rate
            kind, extra = "polynomial", {"lr_end": lowest, "power": 1.0}
        return {
            "lr_scheduler_type": kind,
            "lr_scheduler_kwargs": extra,
            "warmup_steps": self.warmup_steps,
        }

    def _split_batch(self) -> tuple[int, int]:
        """Records a process holds at once, and how often it does so in one step."""
        num_processes = int(os.environ.get("WORLD_SIZE", "1"))
        own, rest = divmod(self.batch, num_processes)
        if rest:
            raise RecipeError(
                f"batch: {self.batch} records cannot be divided among {num_processes} processes"
            )
        micro_batch = own if self.micro_batch is None else self.micro_batch
        if own % micro_batch:
            raise RecipeError(
                f"micro_batch: {micro_batch} does not divide the {own} records of each process"
            )
        return micro_batch, own // micro_batch
