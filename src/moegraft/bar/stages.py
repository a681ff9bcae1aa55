"""The stages of a branch's training as a recipe, with the published settings scaled by tokens."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from moegraft.bar.opened import Level
from moegraft.config import STRICT
from moegraft.train.grpo_options import GrpoOptions
from moegraft.train.options import TrainOptions
from moegraft.train.router_loss import RouterLoss

Kind = Literal["mid", "sft", "dpo", "rl"]
"""Mid-training on text, supervised finetuning on chats, preferences, verifiable rewards."""

LEAST_STEPS = 200
"""A small run makes its batches smaller before it takes fewer steps than this."""

SILENT_BALANCE = 0.1
SILENT_EPSILON = 1e-15
"""What brings tokens to an appended expert that none reaches: a load-balancing loss, whose gradient
on the expert's router row is about 1e-11, and an Adam that does not round that to nothing."""
_REACH = 4.0
"""How often a silent expert's router row could move as far as it has to within its stage; schedules
halve the mean rate, and gradients do not all agree."""


@dataclass(frozen=True, slots=True)
class Preset:
    """What the authors trained with (bar.md of their recipe; `reference` lines in docs/bar.md)."""

    learning_rate: float
    batch_tokens: int
    """Tokens of a step; for dpo and rl, records or completions of a step."""
    length: int
    """Tokens of a block, or of a record."""
    warmup_share: float
    scheduler: str
    epochs: float
    betas: tuple[float, float] = (0.9, 0.95)


PRESETS: dict[str, Preset] = {
    "mid": Preset(9e-4, 128 * 8192, 8192, 2000 / 47684, "cosine", 1.0),
    "sft": Preset(1e-4, 64 * 16384, 4096, 0.03, "linear", 2.0),
    "dpo": Preset(1e-6, 128, 4096, 0.1, "linear", 1.0, (0.9, 0.999)),
    "rl": Preset(6e-7, 128, 4096, 0.0, "constant", 1.0, (0.9, 0.999)),
}
"""By stage. `dpo` is no part of the published recipe; its values are the authors' experiments'."""


@dataclass(frozen=True, slots=True)
class StageRecipe:
    """One stage; what is left out comes from its preset.

    Raises:
        ValueError: fields contradict each other.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    stage: Kind
    data: tuple[str, ...]
    """Files, folders or data sets on the Hub, of the domain."""
    general: tuple[str, ...] = ()
    """The general mix beside the domain's data."""
    general_share: float | None = None
    """Its share of what is read (mid, sft); by size when left out."""
    open: Level | None = None
    """What may move; by stage when left out."""
    steps: int | None = None
    tokens: int | None = None
    """Tokens to train on (mid, sft)."""
    epochs: float | None = None
    """Passes over the domain's data."""
    length: int | None = None
    """Tokens of a block (mid, sft) or a record (dpo); new tokens of a completion (rl)."""
    batch: int | None = None
    """Blocks (mid, sft), records (dpo) or completions (rl) a step."""
    learning_rate: float | None = None
    scheduler: str | None = None
    warmup_share: float | None = None
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.0
    clip: float = 1.0
    z_loss: float = 1e-3
    """Of the routers (mid, sft)."""
    balance_loss: float | None = None
    """Load balancing of the routers (mid, sft); constant, so without use, where all are active.
    When left out none, or `SILENT_BALANCE` where an appended expert starts silent."""
    epsilon: float | None = None
    """Of Adam; when left out 1e-8, or `SILENT_EPSILON` where an appended expert starts silent."""
    router_rate: float | None = None
    """Learning rate of the router rows (mid, sft); when left out the stage's, or more in a short
    stage or narrow model where an appended expert starts silent, so that its row arrives."""
    lora: int | None = None
    """Train the domain expert through factors of this rank, folded at the end of the stage."""
    micro_batch: int | None = None
    """What one process holds at once; the whole batch when left out."""
    save_every: int | None = None
    """Steps between checkpoints; a tenth of the stage when left out."""
    beta: float = 0.1
    """Of dpo."""
    generations: int = 8
    """Completions a prompt (rl)."""
    mini_batches: int = 4
    """Optimizer steps a round of sampling (rl)."""
    temperature: float = 1.0
    reward: float = 10.0
    """For a right answer (rl)."""
    scale_rewards: bool = False
    kl: float = 0.0
    """Weight of the divergence from the stage's start (rl)."""
    seconds: float = 5.0
    """That a program or your own verifier may take (rl)."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError(f"{self.stage}: data: expected at least one file or data set")
        if "" in (*self.data, *self.general):
            raise ValueError(f"{self.stage}: data: expected files or data sets, got an empty name")
        lengths = [n for n in ("steps", "tokens", "epochs") if getattr(self, n) is not None]
        if len(lengths) > 1:
            raise ValueError(f"{self.stage}: {lengths[0]} and {lengths[1]}: expected one of them")
        _check_ranges(self)
        if not self.general and self.general_share is not None:
            raise ValueError(f"{self.stage}: general_share has no effect without general data")
        if self.stage in ("dpo", "rl"):
            for name in ("tokens", "general_share", "balance_loss", "router_rate"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{self.stage}: {name} is for mid and sft")

    @property
    def preset(self) -> Preset:
        """The published settings."""
        return PRESETS[self.stage]

    @property
    def grpo(self) -> GrpoOptions:
        """How completions are sampled and learned from."""
        return replace(
            GrpoOptions.as_published(self.length or self.preset.length),
            num_generations=self.generations,
            mini_batches=self.mini_batches,
            temperature=self.temperature,
            reward=self.reward,
            scale_rewards=self.scale_rewards,
            beta=self.kl,
        )

    @property
    def router_loss(self) -> RouterLoss:
        """The routers' losses."""
        return RouterLoss(balance=self.balance_loss or 0.0, z=self.z_loss)

    def reaching(self) -> "StageRecipe":
        """This stage with what it needs to send tokens to an expert that starts silent.

        Only mid-training and finetuning have router losses; what the recipe says itself stays.
        """
        if self.stage not in ("mid", "sft"):
            return self
        balance = SILENT_BALANCE if self.balance_loss is None else self.balance_loss
        epsilon = SILENT_EPSILON if self.epsilon is None and balance else self.epsilon
        return replace(self, balance_loss=balance, epsilon=epsilon)

    def rate_of_rows(self, num_steps: int, shift: float) -> float | None:
        """Learning rate of the router rows where it is another than the stage's.

        Args:
            num_steps: of the stage.
            shift: how far each number of a silent expert's row has to move; 0 for none.
        """
        own = self.learning_rate or self.preset.learning_rate
        if self.router_rate is not None:
            return self.router_rate
        enough = _REACH * shift / num_steps
        return enough if self.balance_loss and enough > own else None

    def batch_of(self, tokens: int, length: int) -> int:
        """Blocks a step: the published number of tokens, fewer in a small run."""
        if self.batch is not None:
            return self.batch
        wanted = min(self.preset.batch_tokens, tokens // LEAST_STEPS)
        return max(1, wanted // length)

    def options(self, num_steps: int, batch: int, **more: Any) -> TrainOptions:
        """What the trainer is told."""
        preset = self.preset
        share = preset.warmup_share if self.warmup_share is None else self.warmup_share
        every = self.save_every or max(1, num_steps // 10)
        if self.stage == "rl":
            every = -(-every // self.mini_batches) * self.mini_batches
        return TrainOptions(
            num_steps=num_steps,
            batch=batch,
            learning_rate=self.learning_rate or preset.learning_rate,
            warmup_steps=round(share * num_steps),
            scheduler=self.scheduler or preset.scheduler,
            weight_decay=self.weight_decay,
            betas=preset.betas,
            epsilon=1e-8 if self.epsilon is None else self.epsilon,
            clip=self.clip,
            micro_batch=self.micro_batch,
            log_every=max(1, num_steps // 200),
            save_every=every,
            **more,
        )


_POSITIVE = (
    "steps",
    "tokens",
    "epochs",
    "length",
    "batch",
    "learning_rate",
    "epsilon",
    "router_rate",
    "lora",
    "micro_batch",
    "save_every",
    "generations",
    "mini_batches",
    "temperature",
    "seconds",
)
_FROM_0 = ("weight_decay", "clip", "z_loss", "balance_loss", "beta", "reward", "kl")


def _check_ranges(stage: StageRecipe) -> None:
    """Raise ValueError for a number out of its range, infinities and what is no number included."""
    for name in (*_POSITIVE, *_FROM_0, "general_share", "warmup_share"):
        value = getattr(stage, name)
        if value is None:
            continue
        if name in _POSITIVE:
            fits, expected = 0 < value < math.inf, "more than 0"
        elif name in _FROM_0:
            fits, expected = 0 <= value < math.inf, "0 or more"
        elif name == "general_share":
            fits, expected = 0 < value < 1, "a share above 0 and below 1"
        else:
            fits, expected = 0 <= value < 1, "a share below 1"
        if not fits:
            raise ValueError(f"{stage.stage}: {name}: expected {expected}, got {value}")


@dataclass(frozen=True, slots=True)
class AdaptRecipe:
    """How a branch is trained.

    Raises:
        ValueError: there is no stage, or one comes twice.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    branch: str
    """A folder that `moegraft bar branch` made, or that was trained before."""
    stages: tuple[StageRecipe, ...]
    """In this order."""
    as_released: bool = False
    """Open what the authors' scripts open, instead of what the paper's text says."""
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    """Of the weights while they train; they are saved in the branch's own dtype."""
    bf16: bool = False
    """Compute in bfloat16."""
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")
        if not self.stages:
            raise ValueError("stages: expected at least one of mid, sft, dpo, rl")
        order = [list(PRESETS).index(stage.stage) for stage in self.stages]
        if order != sorted(set(order)):
            told = ", ".join(stage.stage for stage in self.stages)
            raise ValueError(
                f"stages: expected each once, in the order {', '.join(PRESETS)}: {told}"
            )
