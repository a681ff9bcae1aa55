"""How completions are sampled, rewarded and learned from in reinforcement learning."""

from dataclasses import dataclass

from moegraft.errors import RecipeError


@dataclass(frozen=True, slots=True)
class GrpoOptions:
    """How completions are sampled, rewarded and learned from.

    BAR (section "RLVR" of its recipe): 8 completions of each of 64 prompts, four mini-batches,
    temperature 1, no reference model, advantages centred but not divided by their deviation,
    ratios clipped at 0.2 below and 0.272 above, the token-level loss of DAPO, reward 10.

    Raises:
        RecipeError: a value is out of its range.
    """

    num_generations: int = 8
    """Completions a prompt, compared with one another."""
    max_new_tokens: int = 96
    """Length at which a completion is cut; what was cut still counts."""
    temperature: float = 1.0
    beta: float = 0.0
    """Weight of the divergence from the start; 0 needs no reference model."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    """Bounds of the ratio of new and old probability: 1 - low to 1 + high."""
    scale_rewards: bool = True
    """Divide a group's advantages by their standard deviation."""
    reward: float = 1.0
    """What a right answer earns; matters where rewards are not scaled."""
    mini_batches: int = 1
    """Optimizer steps on the completions of one round of sampling."""

    def __post_init__(self) -> None:
        for name in ("num_generations", "max_new_tokens", "temperature", "reward", "mini_batches"):
            if getattr(self, name) <= 0:
                raise RecipeError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if self.num_generations < 2:
            raise RecipeError("num_generations: expected at least 2, which can be compared")

    @staticmethod
    def as_published(max_new_tokens: int = 4096) -> "GrpoOptions":
        """What BAR trains with."""
        return GrpoOptions(
            max_new_tokens=max_new_tokens,
            clip_high=0.272,
            scale_rewards=False,
            reward=10.0,
            mini_batches=4,
        )
