"""What to merge and how, as a recipe, and how many experts serve a token afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from moegraft.bar.average import sum_weight
from moegraft.config import STRICT
from moegraft.errors import BranchError
from moegraft.families import COMPONENTS

Method = Literal["bar", "average", "btx", "btx-released"]


@dataclass(frozen=True, slots=True)
class MergeRecipe:
    """What to merge, and how."""

    __pydantic_config__: ClassVar[Any] = STRICT

    anchor: str
    """Folder, `org/name[@revision]` or `nano:NAME`: what all branches grew from."""
    branches: tuple[str, ...]
    """Folders of branches; for the baselines dense models, as SOURCE or NAME=SOURCE."""
    method: Method = "bar"
    """`bar`; `average`: one dense model of mean weights; `btx`: dense models' FFNs as experts,
    everything else averaged; `btx-released`: everything else of the first dense model."""
    shared: str = "mean"
    """How shared tensors become one: mean, changed, anchor, equal, first or sum:WEIGHT."""
    shared_by: Mapping[str, str] = field(default_factory=dict)
    """The same for single components, e.g. `{lm_head: changed}`."""
    as_released: bool = False
    """Accept branches whose anchor expert moved, and average it, as the authors' script does."""
    top_k: int | None = None
    """Experts active per token; all when left out."""
    seed: int = 0
    """Of the new router of `btx`."""
    licence: str | None = None
    """Of the result, where its sources state different ones."""

    def __post_init__(self) -> None:
        wrong = sorted(set(self.shared_by) - set(COMPONENTS))
        if wrong:
            raise ValueError(f"shared_by: unknown component {wrong[0]!r}")
        for name, policy in {"shared": self.shared, **self.shared_by}.items():
            try:
                sum_weight(policy)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if not self.branches:
            raise ValueError("branches: expected at least one")
        if self.as_released and self.method != "bar":
            raise ValueError("as_released goes with method bar only")


def active_experts(recipe: MergeRecipe, default: int, num_experts: int) -> int:
    """Experts per token of a merge.

    Raises:
        BranchError: the recipe asks for more than there are.
    """
    top_k = default if recipe.top_k is None else recipe.top_k
    if not 1 <= top_k <= num_experts:
        raise BranchError(
            f"top_k: expected 1 to {num_experts}, the number of experts, got {recipe.top_k}"
        )
    return top_k
