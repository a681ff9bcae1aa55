"""Which units of the donor carry the difference: attribution, then confirmation on other items."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from moegraft.checkpoint.staging import staged_output
from moegraft.config import STRICT, dump_recipe
from moegraft.errors import EvalDataError, IncompatibleError, RecipeError
from moegraft.evals.condition import Condition, Item
from moegraft.evals.execution import Execution, dtype_on
from moegraft.evals.record import environment
from moegraft.report.blame import BlameReport, blame_markdown, blame_svg
from moegraft.sweep.design import DONOR
from moegraft.sweep.units import Grain, QkNorm, recipe_of, units_of
from moegraft.transfer.scope import Slot

SCHEMA = 1
METHODS = ("integrated", "gradient", "swap")


@dataclass(frozen=True, slots=True)
class BlameRecipe:
    """What to attribute: the difference between host and donor under one condition.

    Raises:
        RecipeError: a number or word that cannot be used.
    """

    __pydantic_config__ = STRICT

    host: str
    """Folder, `org/name[@revision]` or `nano:NAME`."""
    donor: str
    condition: str
    """A task under a prompting."""
    units: Grain = "experts"
    """Rank each expert of each layer, or each component of each layer."""
    items: int = 64
    """Items to rank units on: the first of the seeded order."""
    confirm_items: int | None = None
    """Items that follow them, to confirm on; absent: as many."""
    top: int = 8
    """How many units to confirm, and to put into the transfer recipe."""
    method: Literal["integrated", "gradient", "swap"] = "integrated"
    """Integrated gradients; the first-order gradient at the host; or swapping in each unit."""
    path_points: int = 4
    """Places on the path from host to donor at which gradients are taken."""
    rule: Literal["midpoint", "gauss"] = "midpoint"
    """How they are chosen."""
    seed: int = 0
    """Orders the items, and drives resampling."""
    dtype: str = "auto"
    """As in a sweep: `auto` is float32 on a CPU, else as the host is stored."""
    qk_norm: QkNorm = "attention"
    """Whether the q/k norms count and move with `attention` or on their own."""
    chat_template: bool = True
    chat_template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        numbers = {"items": self.items, "top": self.top, "path_points": self.path_points}
        numbers |= {} if self.confirm_items is None else {"confirm_items": self.confirm_items}
        for name, value in numbers.items():
            if value < 1:
                raise RecipeError(f"{name}: expected at least 1, got {value}")
        if self.method not in METHODS:
            raise RecipeError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")

    @property
    def num_confirm(self) -> int:
        """Items to confirm on."""
        return self.items if self.confirm_items is None else self.confirm_items


@dataclass(frozen=True, slots=True)
class Step:
    """Where an attribution stands."""

    stage: str
    """`ranking` or `confirmation`."""
    done: int
    total: int


def run_blame(
    recipe: BlameRecipe,
    out: Path | str,
    execution: Execution | None = None,
    *,
    on_step: Callable[[Step], None] = lambda step: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """Attribute the difference to units, confirm the top ones, and write what was found.

    Writes `blame.json`, `blame.md`, the map `blame.svg`, and `recipe.yaml`, a transfer recipe of
    the top units. Host and donor are loaded once and the host is never changed.

    Args:
        recipe: what is asked.
        out: a folder to make.
        execution: device, data, memory; shards do not apply.
        on_step: progress.
        on_note: sentences that a user should read.

    Returns:
        The content of `blame.json`.

    Raises:
        OutputError: `out` exists and is not empty.
        MoegraftError: a checkpoint, condition or unit cannot be used.
    """
    from moegraft.runtime import Host

    execution = execution or Execution()
    inputs = [path for path in (Path(recipe.host), Path(recipe.donor)) if path.is_dir()]
    with staged_output(out, inputs) as folder:
        host = Host.load(
            recipe.host,
            {DONOR: recipe.donor},
            device=execution.device,
            device_map=execution.device_map,
            dtype=dtype_on(execution.device, recipe.dtype, execution.device_map),
            memory_budget_bytes=execution.memory_budget_bytes,
        )
        notes = _notes(host)
        for note in notes:
            on_note(note)
        content = _Blame(recipe, execution, host, on_step).content()
        content = {**content, "notes": [*notes, *content["notes"]], "command": execution.command}
        for note in content["notes"][len(notes) :]:
            on_note(note)
        _write(folder, recipe, content)
    return content


def split_items(
    items: Sequence[Item], num_rank: int, num_confirm: int
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """The first items to rank on, the next ones to confirm on; nothing is shared between both.

    An item that shares its cluster (a passage, say) with a ranking item confirms nothing and is
    left out.

    Raises:
        EvalDataError: too few items for both.
    """
    first = tuple(items[:num_rank])
    seen = {item.cluster for item in first if item.cluster is not None}
    rest = [item for item in items[num_rank:] if item.cluster is None or item.cluster not in seen]
    if len(first) < num_rank or len(rest) < 2:
        raise EvalDataError(
            f"{len(items)} items are too few to rank on {num_rank} and to confirm on others; "
            "ask for fewer"
        )
    return first, tuple(rest[:num_confirm])


@dataclass(frozen=True)
class _Blame:
    """One attribution whose models are in memory."""

    recipe: BlameRecipe
    execution: Execution
    host: Any
    on_step: Callable[[Step], None]

    def content(self) -> dict[str, Any]:
        from moegraft.sweep.attribution import MAX_TOKENS, Question, ranked

        recipe = self.recipe
        units = units_of(self.host.checkpoint, recipe.units, recipe.qk_norm)
        condition = self._condition()
        first, second = split_items(condition.items, recipe.items, recipe.num_confirm)
        tokens = self.execution.batch_tokens or MAX_TOKENS
        question = Question(self.host, first, qk_norm=recipe.qk_norm, max_tokens=tokens)
        before = float(question.logprobs().mean())
        with question.taking_all():
            after = float(question.logprobs().mean())
        finest, values = self._values(question, units)
        top = [unit for unit in ranked(values)[: recipe.top] if values[unit] > 0]
        notes = [] if after > before else [_worse(recipe)]
        if not top:
            raise EvalDataError(
                f"{condition.name}: no unit of the donor raises the gold answers on these items; "
                "exchange host and donor, or ask about more items"
            )
        return {
            "schema": SCHEMA,
            "recipe": _plain(recipe),
            "condition": condition.name,
            "device": " and ".join(map(str, self.host.devices)),
            "dtype": str(self.host.dtype).removeprefix("torch."),
            "env": environment(),
            "items": {"ranking": [i.hash for i in first], "confirmation": [i.hash for i in second]},
            "measured": {"host": before, "donor": after, "difference": after - before},
            "attributed": _attributed(finest, after - before),
            "slots": [_entry(slot, value) for slot, value in (finest or {}).items()],
            "units": [_entry(unit, values[unit]) for unit in units],
            "top": [_entry(unit, values[unit]) for unit in top],
            "confirmed": self._confirm(question, condition, top, second),
            "notes": notes,
        }

    def _condition(self) -> Condition:
        from moegraft.evals.harness import load_condition

        recipe = self.recipe
        return load_condition(
            recipe.condition,
            tokenizer=self.host.tokenizer,
            data_dir=self.execution.data_dir,
            include=self.execution.include,
            limit=recipe.items + recipe.num_confirm,
            seed=recipe.seed,
            chat_template=recipe.chat_template,
            chat_template_kwargs=recipe.chat_template_kwargs,
        )

    def _values(
        self, question: Any, units: Sequence[Slot]
    ) -> tuple[dict[Slot, float] | None, dict[Slot, float]]:
        """By finest slot (None for swaps, which have no parts), and by unit."""
        from moegraft.sweep import attribution

        recipe = self.recipe
        if recipe.method == "swap":
            tell = _Counter(self.on_step, "ranking", len(units))
            return None, attribution.single_swaps(question, units, on_step=tell)
        points = recipe.path_points if recipe.method == "integrated" else 1
        tell = _Counter(self.on_step, "ranking", attribution.num_steps(question, points))
        if recipe.method == "gradient":
            finest = attribution.slopes_at(question, 0.0, on_step=tell)
        else:
            finest = attribution.integrated_gradients(
                question, num_points=points, rule=recipe.rule, on_step=tell
            )
        return finest, question.sum_by(finest, units)

    def _confirm(
        self, question: Any, condition: Condition, top: Sequence[Slot], items: Sequence[Item]
    ) -> dict[str, Any]:
        from moegraft.sweep.confirm_units import Confirmation

        tell = _Counter(self.on_step, "confirmation", len(top) + 3)
        confirmation = Confirmation(question, condition, items, seed=self.recipe.seed)
        return confirmation.run(top, on_step=tell)


class _Counter:
    """Counts steps and tells."""

    def __init__(self, on_step: Callable[[Step], None], stage: str, total: int) -> None:
        self._tell, self._done = partial(on_step), 0
        self._stage, self._total = stage, total

    def __call__(self) -> None:
        self._done += 1
        self._tell(Step(self._stage, self._done, self._total))


def _attributed(finest: Mapping[Slot, float] | None, difference: float) -> dict[str, float] | None:
    """The sum of all attributions, and by how much it misses the measured difference."""
    if finest is None:
        return None
    total = sum(finest.values())
    return {"total": total, "completeness_error": total - difference}


def _notes(host: Any) -> list[str]:
    """What a reader must know about the end of the path."""
    notes = [*host.tokenizer_differences]
    if host.id_maps_differ[DONOR]:
        notes.append(
            "the donor's tokenizer numbers its tokens differently: embedding and lm_head stay the "
            "host's, and 'donor' here means all other weights of the donor in the host"
        )
    try:
        obstacles = host.donor_obstacles(DONOR)
    except IncompatibleError as error:
        obstacles = [str(error)]
    if obstacles:
        notes.append(f"all weights run under the host's config: {'; '.join(obstacles)}")
    return notes


def _worse(recipe: BlameRecipe) -> str:
    return (
        f"the donor is not better than the host under {recipe.condition} on these items; to find "
        "what to take back from a model that lost something, make it the host and its better "
        "parent the donor"
    )


def _entry(unit: Slot, value: float) -> dict[str, Any]:
    return {**unit._asdict(), "value": value}


def _plain(recipe: BlameRecipe) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(recipe)


def _write(folder: Path, recipe: BlameRecipe, content: Mapping[str, Any]) -> None:
    top = [Slot(e["component"], e["layer"], e["expert"]) for e in content["top"]]
    made = recipe_of(recipe.host, recipe.donor, top, recipe.qk_norm)
    report = BlameReport(content)
    lines = [*report.sentences(), "moegraft transfer recipe.yaml --out DIR"]
    comment = "".join(f"# {line}\n" for line in lines)
    files = {
        "blame.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n",
        "blame.md": blame_markdown(report),
        "blame.svg": blame_svg(report),
        "recipe.yaml": comment + dump_recipe(made),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
