"""What a comparison of starts is about: donor, target, texts, arms, protocols, seeds, training."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from moegraft.config import STRICT
from moegraft.errors import RecipeError
from moegraft.train.options import TrainOptions
from moegraft.xpert.arms import ARMS, BASELINE
from moegraft.xpert.inherit import INHERITABLE
from moegraft.xpert.ranks import parse_ranks
from moegraft.xpert.resize import Resizing
from moegraft.xpert.scores import check_score

PROTOCOLS: dict[str, tuple[str, ...]] = {"ffn": (), "trunk": INHERITABLE}
"""What is inherited beside the FFNs: nothing, as published; or embeddings, attention, norms, head
in every arm, so that only the FFNs differ."""


@dataclass(frozen=True, slots=True)
class Training:
    """How every arm is trained; the same blocks in the same order."""

    __pydantic_config__: ClassVar[Any] = STRICT

    num_steps: int = 600
    batch: int = 16
    """Blocks a step, over all processes."""
    block: int = 256
    """Tokens of a block."""
    learning_rate: float = 4e-4
    warmup_steps: int = 50
    scheduler: str = "cosine"
    final_rate: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    micro_batch: int | None = None
    bf16: bool = False
    eval_every: int = 50
    save_every: int = 0
    """Steps between checkpoints; what is interrupted goes on from the last one."""

    def options(self, seed: int, *, use_cpu: bool) -> TrainOptions:
        """For `train_lm`; the seed decides the order of the blocks."""
        return TrainOptions(
            num_steps=self.num_steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            seed=seed,
            warmup_steps=self.warmup_steps,
            scheduler=self.scheduler,
            final_rate=self.final_rate if self.scheduler != "constant" else 0.0,
            weight_decay=self.weight_decay,
            betas=self.betas,
            clip=self.clip,
            micro_batch=self.micro_batch,
            bf16=self.bf16,
            use_cpu=use_cpu,
            log_every=self.eval_every or self.num_steps,
            save_every=self.save_every,
            eval_every=self.eval_every,
        )


@dataclass(frozen=True, slots=True)
class CompareRecipe:
    """A comparison of arms.

    Raises:
        RecipeError: a value that cannot be.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    donor: str
    """Folder, `org/name[@revision]` or `nano:NAME`."""
    data: tuple[str, ...]
    """Texts by domain, as `moegraft xpert identify --data` has them."""
    target: dict[str, Any] | str
    """config.json of the target: its path, or what differs in it from the donor's."""
    validation: tuple[str, ...] = ()
    """Other texts to validate on; without them a share of the texts is held out."""
    held_out: float = 0.1
    arms: tuple[str, ...] = tuple(ARMS)
    protocols: tuple[str, ...] = tuple(PROTOCOLS)
    num_seeds: int = 3
    selection: str | None = None
    """selection.json of identify; None chooses on the texts of training."""
    top: int = 4
    score: str = "a_minus_c"
    ranks: str = "half"
    align: bool = False
    resizing: Resizing = field(default_factory=Resizing)
    training: Training = field(default_factory=Training)
    max_tokens: int = 1_000_000
    """Read of each domain."""
    profile_tokens: int = 100_000
    """Of each domain, to identify experts on."""
    fit_tokens: int = 50_000
    """Of all domains together, for arms that are fitted."""
    validation_blocks: int = 64
    """Of each domain."""
    fields: tuple[str, ...] = ("text",)
    limit: int = 500
    """Items of a task that are read."""
    task_data: str | None = None
    include: tuple[str, ...] = ()
    keep_models: bool = False
    """Save what each training ends with, to finetune and score it on tasks."""
    device: str = "auto"
    """`auto`, or `cpu` to stay there."""

    def __post_init__(self) -> None:
        for what, given, known in (
            ("arms", self.arms, ARMS),
            ("protocols", self.protocols, PROTOCOLS),
        ):
            odd = [name for name in given if name not in known]
            if odd or not given or len(set(given)) < len(given):
                raise RecipeError(f"{what}: expected some of {', '.join(known)}, got {list(given)}")
        if BASELINE not in self.arms:
            raise RecipeError(f"arms: expected {BASELINE} among them, which all are compared with")
        if self.num_seeds < 2:
            raise RecipeError(f"num_seeds: expected at least 2, got {self.num_seeds}")
        if not self.data:
            raise RecipeError("data: expected texts of at least one domain")
        sizes = ("top", "max_tokens", "profile_tokens", "fit_tokens", "validation_blocks", "limit")
        for name in sizes:
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.training.block < 2:
            raise RecipeError(f"block: expected at least 2 tokens, got {self.training.block}")
        if not 0 < self.held_out < 1:
            raise RecipeError(f"held_out: expected a share between 0 and 1, got {self.held_out}")
        if self.device not in ("auto", "cpu"):
            raise RecipeError(f"device: expected auto or cpu, got {self.device!r}")
        check_score(self.score)
        parse_ranks(self.ranks)
        self.training.options(0, use_cpu=True)

    @property
    def num_trainings(self) -> int:
        """Arms x protocols x seeds."""
        return len(self.arms) * len(self.protocols) * self.num_seeds

    def reading(self) -> dict[str, Any]:
        """Options of `corpus.read_corpus`."""
        return {
            "validation": self.validation,
            "held_out": self.held_out,
            "length": self.training.block,
            "max_tokens": self.max_tokens,
            "validation_blocks": self.validation_blocks,
            "fields": self.fields,
            "limit": self.limit,
            "data_dir": None if self.task_data is None else Path(self.task_data),
            "include": tuple(Path(one) for one in self.include),
        }
