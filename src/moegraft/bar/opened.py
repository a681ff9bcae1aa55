"""What each stage opens in a branch; the anchor's expert and router row stay frozen throughout."""

from collections.abc import Iterator
from math import prod
from typing import Any, Literal, get_args

from moegraft.bar.branches import Branch
from moegraft.bar.vocabulary import VOCABULARY
from moegraft.errors import RecipeError
from moegraft.train.freeze import Trainable

Level = Literal["expert", "tokens", "vocabulary", "shared", "everything"]
"""What may move, each level with all before it:

* `expert`: the domain expert and its router row (mid-training);
* `tokens`: rows of the new tokens in embedding and output head;
* `vocabulary`: all of embedding and output head (supervised finetuning);
* `shared`: every tensor but the anchor's expert and router row (reinforcement learning);
* `everything`: those too, as the authors' released command for reinforcement learning does.
"""

LEVELS: tuple[str, ...] = get_args(Level)

PAPER: dict[str, Level] = {
    "mid": "expert",
    "sft": "vocabulary",
    "dpo": "vocabulary",
    "rl": "shared",
}
"""By stage, from the paper's text; it has no preference stage in its final recipe."""


def level_of(stage: str, branch: Branch, *, as_released: bool = False) -> Level:
    """What `stage` opens by default.

    The authors' scripts differ from the paper's text: supervised finetuning keeps everything
    shared frozen, except in the one domain with new tokens, and reinforcement learning freezes
    nothing at all. In a branch of a MoE all old tensors are frozen throughout, so the highest level
    is `tokens`.
    """
    if branch.manifest.kind == "appended":
        return "expert" if stage == "mid" or not branch.manifest.tokens else "tokens"
    if as_released and stage in ("sft", "dpo"):
        return "vocabulary" if branch.manifest.tokens else "expert"
    if as_released and stage == "rl":
        return "everything"
    return PAPER[stage]


def check_level(level: Level, branch: Branch) -> None:
    """Raise RecipeError where a branch has nothing that `level` could open, or must not open it."""
    if level == "tokens" and not branch.manifest.tokens:
        raise RecipeError(f"open: tokens: the branch {branch.folder} has no new tokens")
    if branch.manifest.kind == "appended" and LEVELS.index(level) > LEVELS.index("tokens"):
        raise RecipeError(
            f"open: {level}: {branch.folder} is a branch of a MoE, whose old tensors stay frozen; "
            "expected expert or tokens"
        )


def trainable(model: Any, branch: Branch, level: Level) -> Trainable:
    """`level` in the names of the live model.

    Args:
        model: the branch, loaded.
        branch: the same on disk.
        level: what opens.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    if level == "everything":
        return Trainable(whole=tuple(named))
    experts = tuple(range(branch.first_expert, branch.checkpoint.num_experts))
    tokens = tuple(sorted(branch.manifest.tokens.values()))
    whole: list[str] = []
    rows: dict[str, tuple[int, ...]] = {}
    for name, component in _components(branch, named):
        if component in ("experts", "router"):
            rows[name] = experts
        elif level == "shared" or (level == "vocabulary" and component in VOCABULARY):
            whole.append(name)
        elif level == "tokens" and component in VOCABULARY:
            rows[name] = tokens
    return Trainable(tuple(whole), rows)


def expert_rows(opened: Trainable, branch: Branch) -> dict[str, tuple[int, ...]]:
    """The part of `opened` that is fused experts, by live name."""
    return {
        name: chosen
        for name, chosen in opened.rows.items()
        if branch.checkpoint.family.place(name).component == "experts"
    }


def _components(branch: Branch, names: Any) -> Iterator[tuple[str, str]]:
    for name in names:
        yield name, branch.checkpoint.family.place(name).component


def num_opened(branch: Branch, level: Level) -> int:
    """Numbers that may move at `level`, from headers alone."""
    first, new = branch.first_expert, len(branch.manifest.tokens)
    order = LEVELS.index(level)
    total = 0
    for key, stored in branch.checkpoint.pieces().items():
        numel = prod(stored.shape)
        if level == "everything":
            total += numel
        elif key.component == "experts":
            total += numel if key.expert is not None and key.expert >= first else 0
        elif key.component == "router":
            total += numel * branch.manifest.num_appended // stored.shape[0]
        elif order >= LEVELS.index("shared"):
            total += numel
        elif key.component in VOCABULARY and order >= LEVELS.index("tokens"):
            total += numel if level == "vocabulary" else numel * new // stored.shape[0]
    return total
