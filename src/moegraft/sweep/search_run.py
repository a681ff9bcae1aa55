"""One search from recipe to files: load, search, confirm once on held-out items, write."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moegraft.checkpoint.staging import staged_output
from moegraft.config import STRICT, dump_recipe
from moegraft.errors import EvalDataError, RecipeError
from moegraft.evals.condition import Condition, Item
from moegraft.evals.execution import Execution, dtype_on
from moegraft.evals.record import environment
from moegraft.report.task_table import recommended
from moegraft.stats.paired import paired_test
from moegraft.sweep.blame import Step, split_items
from moegraft.sweep.design import DONOR
from moegraft.sweep.search import (
    GOLD_SHARE,
    NUM_FINALISTS,
    PASSES,
    Arena,
    Scores,
    guided_search,
)
from moegraft.sweep.select import ALPHA, told
from moegraft.sweep.space import Composition, Space
from moegraft.sweep.units import QkNorm, recipe_of, units_of
from moegraft.transfer.recipe import HOST, TransferRecipe
from moegraft.transfer.scope import Slot

SCHEMA = 1
_FEWEST = 8


@dataclass(frozen=True, slots=True)
class SearchRecipe:
    """What to search: compositions of two checkpoints for one condition.

    Raises:
        RecipeError: a number that cannot be used.
    """

    __pydantic_config__ = STRICT

    host: str
    """Folder, `org/name[@revision]` or `nano:NAME`."""
    donor: str
    condition: str
    """A task under a prompting."""
    budget: int = 4000
    """Item evaluations that the search may spend; the confirmation comes on top."""
    groups: int = 4
    """Groups of layers; each component moves in each group alone."""
    confirm_items: int = 500
    """Held-out items, evaluated once; at most half of the condition's."""
    seed: int = 0
    """Orders the items, and drives resampling."""
    dtype: str = "auto"
    qk_norm: QkNorm = "attention"
    chat_template: bool = True
    chat_template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        fewest = int(_FEWEST * PASSES / GOLD_SHARE) + 1
        if self.budget < fewest:
            raise RecipeError(f"budget: expected at least {fewest}, got {self.budget}")
        for name, value in (("groups", self.groups), ("confirm_items", self.confirm_items)):
            if value < 1:
                raise RecipeError(f"{name}: expected at least 1, got {value}")

    @property
    def num_gold(self) -> int:
        """Items on which compositions are compared by gold log-probability."""
        return int(self.budget * GOLD_SHARE) // PASSES

    @property
    def num_score(self) -> int:
        """Items on which the finalists are compared by score."""
        return int(self.budget * (1 - GOLD_SHARE)) // NUM_FINALISTS


@dataclass(frozen=True)
class Confirmed:
    """A composition and its parents on items that no search has seen."""

    condition: Condition
    items: Sequence[Item]
    host: Scores
    donor: Scores
    seed: int = 0

    @classmethod
    def parents(cls, arena: Arena, items: Sequence[Item]) -> "Confirmed":
        """Score host and donor."""
        host = arena.scores(items)
        with arena.question.taking_all():
            donor = arena.scores(items)
        return cls(arena.condition, items, host, donor, arena.seed)

    def judge(self, scores: Scores) -> dict[str, Any]:
        """Paired tests against both parents; `exceeds` needs both (intersection-union)."""
        against, worst = {}, 0.0
        parents = {HOST: self.host, DONOR: self.donor}
        for name, own in parents.items():
            test = self.test(scores, own)
            against[name] = test
            worst = max(worst, test["p"] if test["difference"] > 0 else 1.0)
        return {
            "condition": self.condition.name,
            "num_confirming": len(self.items),
            "score": float(scores.mean()),
            "against": against,
            "parent": max(parents, key=lambda name: float(parents[name].mean())),
            "p": worst,
            "exceeds": worst < ALPHA,
        }

    def test(self, a: Scores, b: Scores) -> dict[str, Any]:
        """a minus b with interval and p."""
        clusters = [item.cluster for item in self.items]
        found = paired_test(a, b, clusters=clusters, seed=self.seed)
        ends = found.estimate.interval
        return {
            "difference": found.estimate.value,
            "interval": [ends.low, ends.high],
            "p": found.p_value,
            "p_holm": None,
        }


def open_arena(
    recipe: SearchRecipe,
    execution: Execution,
    *,
    on_spent: Callable[[int], None] = lambda spent: None,
) -> tuple[Arena, tuple[Item, ...]]:
    """Load host, donor and items; the arena, and the items that are held out for confirmation.

    Raises:
        EvalDataError: too few items.
        MoegraftError: a checkpoint or condition cannot be used.
    """
    from moegraft.evals.harness import load_condition
    from moegraft.runtime import Host
    from moegraft.sweep.attribution import MAX_TOKENS, Question

    host = Host.load(
        recipe.host,
        {DONOR: recipe.donor},
        device=execution.device,
        device_map=execution.device_map,
        dtype=dtype_on(execution.device, recipe.dtype, execution.device_map),
        memory_budget_bytes=execution.memory_budget_bytes,
    )
    if recipe.groups > host.checkpoint.num_layers:
        raise RecipeError(
            f"groups: expected at most {host.checkpoint.num_layers}, the number of layers, "
            f"got {recipe.groups}"
        )
    wanted = max(recipe.num_gold, recipe.num_score)
    condition = load_condition(
        recipe.condition,
        tokenizer=host.tokenizer,
        data_dir=execution.data_dir,
        include=execution.include,
        limit=wanted + recipe.confirm_items,
        seed=recipe.seed,
        chat_template=recipe.chat_template,
        chat_template_kwargs=recipe.chat_template_kwargs,
    )
    num_confirm = min(recipe.confirm_items, condition.num_total // 2)
    pool = min(wanted, len(condition.items) - num_confirm)
    if pool < _FEWEST:
        raise EvalDataError(f"{condition.name}: {len(condition.items)} items are too few to search")
    seen, held_out = split_items(condition.items, pool, num_confirm)
    tokens = execution.batch_tokens or MAX_TOKENS
    question = Question(host, seen[: recipe.num_gold], qk_norm=recipe.qk_norm, max_tokens=tokens)
    space = Space.of(host.checkpoint, recipe.groups, recipe.qk_norm, differing=_differing(question))
    if len(space.units) < 2:
        raise RecipeError(
            f"{recipe.host} and {recipe.donor} differ in {len(space.units)} units only, so there "
            "is nothing to compose; ask for more groups of layers"
        )
    arena = Arena(
        question,
        condition,
        space,
        seen[: recipe.num_score],
        recipe.budget,
        seed=recipe.seed,
        on_spent=on_spent,
    )
    return arena, held_out


def _differing(question: Any) -> set[Slot]:
    """Components by layer in which host and donor differ, of those that may move."""
    place = question.host.checkpoint.family.place
    places = [place(name) for name in question.path.names]
    ones = {Slot(found.component, found.layer, found.expert): 1.0 for found in places}
    units = units_of(question.host.checkpoint, "components", question.qk_norm)
    return {unit for unit, count in question.sum_by(ones, units).items() if count}


def run_search(
    recipe: SearchRecipe,
    out: Path | str,
    execution: Execution | None = None,
    *,
    on_step: Callable[[Step], None] = lambda step: None,
) -> dict[str, Any]:
    """Search, confirm once, and write `search.json` and `recipe.yaml` into a new folder.

    Raises:
        OutputError: `out` exists and is not empty.
        MoegraftError: a checkpoint, condition or number cannot be used.
    """
    execution = execution or Execution()
    inputs = [path for path in (Path(recipe.host), Path(recipe.donor)) if path.is_dir()]
    with staged_output(out, inputs) as folder:
        arena, held_out = open_arena(
            recipe, execution, on_spent=lambda n: on_step(Step("search", n, recipe.budget))
        )
        attributed: list[float] = []
        chosen = guided_search(arena, on_attributed=attributed.extend)
        on_step(Step("confirmation", 0, 3))
        confirmed = Confirmed.parents(arena, held_out)
        on_step(Step("confirmation", 2, 3))
        with arena.taking(chosen):
            judged = confirmed.judge(arena.scores(held_out))
        on_step(Step("confirmation", 3, 3))
        content = {
            "schema": SCHEMA,
            "recipe": asdict(recipe),
            "env": environment(),
            "command": execution.command,
            **_content(arena, attributed, chosen, judged),
        }
        made = recipe_of(recipe.host, recipe.donor, arena.space.slots(chosen), recipe.qk_norm)
        _write(folder, content, made)
    return content


def _content(
    arena: Arena, attributed: Sequence[float], chosen: Composition, judged: Mapping[str, Any]
) -> dict[str, Any]:
    space, host = arena.space, arena.golds[frozenset()]
    ranked = sorted(arena.golds, key=lambda c: -float(arena.golds[c].mean()))
    choice = {
        "configuration": space.describe(chosen),
        "source": "search",
        "num_choices": len(arena.golds),
        "num_choosing": len(arena.score_items),
        **judged,
    }
    return {
        "spent": arena.spent,
        "items": {
            "gold": [item.hash for item in arena.question.items],
            "score": [item.hash for item in arena.score_items],
        },
        "units": [
            {"unit": str(unit), "attribution": value}
            for unit, value in zip(space.units, attributed, strict=True)
        ],
        "tried": [
            {
                "composition": space.describe(one),
                "gold_difference": float((arena.golds[one] - host).mean()),
            }
            for one in ranked
        ],
        "finalists": [
            {"composition": space.describe(one), "score": score}
            for one, score in sorted(arena.finals.items(), key=lambda found: -found[1])
        ],
        "choice": choice | {"recommended": recommended(choice)},
    }


def _write(folder: Path, content: Mapping[str, Any], made: TransferRecipe) -> None:
    lines = [told(content["choice"]), "moegraft transfer recipe.yaml --out DIR"]
    comment = "".join(f"# {line}\n" for line in lines)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (folder / "search.json").write_text(text, encoding="utf-8")
    (folder / "recipe.yaml").write_text(comment + dump_recipe(made), encoding="utf-8")
