"""Which configurations under which conditions: the paper's nine, a full factorial, or a list."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any, Literal

from moegraft.config import STRICT
from moegraft.errors import RecipeError, RunError
from moegraft.families import COMPONENTS
from moegraft.transfer.recipe import HOST, NAMED_APART, Selection, TransferRecipe, component_recipe

DONOR = "donor"
"""The name of the main donor among a plan's sources, and of the pure donor as a configuration."""

PAPER_CONDITIONS = (
    "paper_boolq",
    "paper_gsm8k_cot",
    "paper_arc_challenge/0-shot",
    "paper_arc_challenge/5-shot",
)
"""The columns of Tables 1 and 2 of Tiwari (GEM 2026)."""

NANO_CONDITIONS = (
    "nano_reading/0-shot",
    "nano_math/cot",
    "nano_science/0-shot",
    "nano_science/5-shot",
)
"""Their small counterparts, for the packaged checkpoints."""

_ORDER = (*NAMED_APART, "rest", *COMPONENTS)
_SPECIAL = (HOST, DONOR)
_RESERVED = set("/\\\0")


@dataclass(frozen=True, slots=True)
class NamedConfiguration:
    """A configuration that takes more than a list of components to say: layers, experts, mixing."""

    __pydantic_config__ = STRICT

    name: str
    """Names the folder of its results."""
    selections: tuple[Selection, ...]
    """As in a transfer recipe; `donor` may name one of the sweep's `donors`."""

    def __post_init__(self) -> None:
        if not self.name or self.name in _SPECIAL or _RESERVED & set(self.name):
            raise RecipeError(
                f"name {self.name!r}: expected a word without '/', other than 'host' and 'donor'"
            )


@dataclass(frozen=True, slots=True)
class SweepRecipe:
    """What to evaluate: host and donor, configurations, conditions, how many items.

    Raises:
        RecipeError: a factor, configuration or number that cannot be used.
    """

    __pydantic_config__ = STRICT

    host: str
    """Folder, `org/name[@revision]` or `nano:NAME`."""
    donor: str
    """The checkpoint that gives; it is also evaluated whole, as configuration `donor`."""
    preset: Literal["paper", "factorial", "custom"] | None = None
    """`paper`: all subsets of router, attention, experts; `factorial`: all subsets of `factors`;
    `custom`: only `configurations`. Absent: `custom` where there are `configurations`."""
    factors: tuple[str, ...] = ()
    """Components of the factorial; `rest` is all but router, attention and experts."""
    configurations: tuple[str | NamedConfiguration, ...] = ()
    """More configurations: `attention+experts`, or a name with selections."""
    donors: Mapping[str, str] = field(default_factory=dict)
    """Further donors by name, for selections that name them."""
    qk_norm: Literal["attention", "own"] = "attention"
    """Whether the q/k norms move with `attention` or on their own."""
    conditions: tuple[str, ...] = ()
    """Tasks under a prompting; absent: the paper's four, or the nano four for a nano host."""
    limit: int | Literal["all"] = 500
    """Items per cell: the first of the seeded order, so a larger limit contains a smaller one."""
    seed: int = 0
    """Orders the items."""
    dtype: str = "auto"
    """`float32`, `bfloat16`, `float16`, or `auto`: float32 on a CPU, else as the host is stored."""
    chat_template: bool = True
    """Whether prompts are put into the host's chat template."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    repeats: int | None = None
    """Generations per item, whose scores are averaged; absent: what each task says."""
    temperature: float | None = None
    """Of sampling, 0 = greedy; absent: what each task says."""
    max_gen_toks: int | None = None
    """Tokens of one generation at most; absent: what each task says."""
    confirm: bool = False
    """Evaluate key configurations on all items: host, donor and the best of each condition."""
    confirm_configurations: tuple[str, ...] = ()
    """More configurations to confirm."""

    def __post_init__(self) -> None:
        if not isinstance(self.limit, str) and self.limit < 1:
            raise RecipeError(f"limit: expected a positive number or 'all', got {self.limit}")
        for name, least in (("repeats", 1), ("temperature", 0), ("max_gen_toks", 1)):
            if (given := getattr(self, name)) is not None and given < least:
                raise RecipeError(f"{name}: expected at least {least}, got {given}")
        if self.factors and self.preset != "factorial":
            raise RecipeError("factors: have an effect only with 'preset: factorial'")
        if self.preset == "factorial" and not self.factors:
            raise RecipeError("factors: 'preset: factorial' needs at least one, e.g. router, rest")
        if self.preset == "custom" and not self.configurations:
            raise RecipeError("configurations: 'preset: custom' needs at least one")
        for what, names in (("factors", self.factors), ("conditions", self.conditions)):
            _refuse_twice(what, names)
        if set(self.donors) & set(_SPECIAL):
            raise RecipeError("donors: 'host' and 'donor' are taken; give the others other names")

    def resolved(self) -> "SweepRecipe":
        """The recipe with every default written out."""
        preset = self.preset or ("custom" if self.configurations else "paper")
        nano = self.host.startswith("nano:")
        conditions = self.conditions or (NANO_CONDITIONS if nano else PAPER_CONDITIONS)
        return replace(self, preset=preset, conditions=conditions)


@dataclass(frozen=True, slots=True)
class Configuration:
    """Which components come from a donor."""

    name: str
    """`host`, `donor`, component names joined by `+` in a fixed order, or a custom name."""
    components: tuple[str, ...]
    """What moves as a whole; empty for `host` and for custom selections."""
    recipe: TransferRecipe


def design(recipe: SweepRecipe) -> tuple[Configuration, ...]:
    """The configurations of a sweep: `host` first, then by number of components, `donor` last.

    Raises:
        RecipeError: an unknown component, one configuration asked for twice, or one to confirm
            that is not in the design.
    """
    recipe = recipe.resolved()
    found = {HOST: _composed(recipe, ())}
    for components in _subsets(recipe):
        made = _composed(recipe, components)
        found[made.name] = made
    for wanted in recipe.configurations:
        made = _custom(recipe, wanted)
        if made.name in found and recipe.preset == "custom":
            raise RecipeError(f"configurations: {made.name!r} is named twice or always included")
        found[made.name] = made
    whole = component_recipe(recipe.host, recipe.donor, DONOR, qk_norm=recipe.qk_norm)
    found[DONOR] = Configuration(DONOR, ("all",), whole)
    for name in recipe.confirm_configurations:
        if name not in found:
            known = ", ".join(found)
            raise RecipeError(f"confirm_configurations: no {name!r}; expected of: {known}")
    return tuple(found.values())


def canonical_name(components: Iterable[str]) -> str:
    """`experts+router` as `router+experts`: one name per set of components; `host` for none."""
    return "+".join(_in_order(components)) or HOST


def check_extends(old: SweepRecipe, new: SweepRecipe, run_dir: object) -> None:
    """Refuse to continue a run under a recipe that does more than extend it.

    More items, conditions and configurations are extensions, and so is `confirm`.

    Raises:
        RunError: anything else differs; the message names it.
    """
    old, new = old.resolved(), new.resolved()
    limits = [_number(recipe.limit) for recipe in (old, new)]
    before, after = ({c.name: c.recipe for c in design(recipe)} for recipe in (old, new))
    lost = [name for name, made in before.items() if after.get(name) != made]
    changes = [
        f"{key} {was!r} became {now!r}"
        for (key, was), now in zip(asdict(old).items(), asdict(new).values(), strict=True)
        if was != now and key not in _MAY_GROW
    ]
    if old.confirm and not new.confirm:
        changes.append("confirm True became False")
    if limits[1] < limits[0]:
        changes.append(f"limit {old.limit} became {new.limit}")
    missing = [*lost, *(name for name in old.conditions if name not in new.conditions)]
    if missing:
        changes.append(f"{', '.join(missing)} is missing or changed")
    if changes:
        raise RunError(
            f"{run_dir} holds another run: {'; '.join(changes)}. A run only grows (more items, "
            "conditions, configurations); choose another --out, or repeat the first recipe"
        )


_MAY_GROW = {
    "preset",
    "factors",
    "configurations",
    "donors",
    "conditions",
    "limit",
    "confirm",
    "confirm_configurations",
}


def _number(limit: int | str) -> int | float:
    return float("inf") if isinstance(limit, str) else limit


def _subsets(recipe: SweepRecipe) -> Iterator[tuple[str, ...]]:
    if recipe.preset == "custom":
        return
    factors = recipe.factors if recipe.preset == "factorial" else NAMED_APART
    for size in range(1, len(factors) + 1):
        yield from combinations(_in_order(factors), size)


def _in_order(components: Iterable[str]) -> list[str]:
    places = {name: place for place, name in reversed(list(enumerate(_ORDER)))}
    return sorted(components, key=lambda name: (places.get(name.split("[")[0], 99), name))


def _composed(recipe: SweepRecipe, components: tuple[str, ...]) -> Configuration:
    name = canonical_name(components)
    made = component_recipe(recipe.host, recipe.donor, name, qk_norm=recipe.qk_norm)
    return Configuration(name, tuple(_in_order(components)), made)


def _custom(recipe: SweepRecipe, wanted: str | NamedConfiguration) -> Configuration:
    if isinstance(wanted, str):
        components = tuple(part.strip() for part in wanted.split("+"))
        if set(_SPECIAL) & set(components):
            raise RecipeError(f"configurations: {wanted!r} is always included; leave it out")
        _refuse_twice("configurations", components)
        return _composed(recipe, components)
    donors = {DONOR: recipe.donor, **recipe.donors}
    chosen = tuple(replace(s, donor=s.donor or DONOR) for s in wanted.selections)
    used = {s.donor for s in chosen}
    unknown = sorted(str(name) for name in used - set(donors))
    if unknown:
        raise RecipeError(
            f"configurations.{wanted.name}: no donor {unknown[0]!r}; "
            f"the recipe names: {', '.join(donors)}"
        )
    named = {name: source for name, source in donors.items() if name in used}
    made = TransferRecipe(recipe.host, named, chosen, recipe.qk_norm)
    return Configuration(wanted.name, (), made)


def _refuse_twice(what: str, names: Iterable[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise RecipeError(f"{what}: {twice[0]!r} is named twice")
