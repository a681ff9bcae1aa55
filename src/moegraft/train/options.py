"""What every trainer is told: steps, batch, learning rate, seed, where to log."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Settings that supervised, preference and reinforcement training share."""

    num_steps: int
    batch: int
    """Records a step; for reinforcement learning, completions a step."""
    learning_rate: float
    seed: int = 0
    warmup_steps: int = 10
    scheduler: str = "linear"
    use_cpu: bool = True
    log_every: int = 25

    def arguments(self, work: Path) -> dict[str, Any]:
        """Keyword arguments for any TRL config; nothing is saved or reported by the trainer."""
        return {
            "output_dir": str(work),
            "max_steps": self.num_steps,
            "per_device_train_batch_size": self.batch,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": self.scheduler,
            "warmup_steps": self.warmup_steps,
            "seed": self.seed,
            "data_seed": self.seed,
            "use_cpu": self.use_cpu,
            "bf16": False,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
            "logging_steps": self.log_every,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
