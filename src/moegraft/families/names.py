"""Tensor names to naming rules: which rule of a family fits a name, and what its numbers mean."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import NamedTuple

COMPONENTS = (
    "embedding",
    "attention",
    "qk_norm",
    "mixer",
    "router",
    "experts",
    "shared_experts",
    "mlp",
    "norm",
    "lm_head",
    "extra",
)
"""Every tensor of every family belongs to exactly one of these."""

LEAVES = (
    "weight",
    "bias",
    "weight_scale_inv",
    "weight_scale",
    "weight_scale_2",
    "input_scale",
    "weight_packed",
    "weight_shape",
)
"""What `{leaf}` in a template may be: the tensor itself, its bias, and quantisation companions."""

PLACEHOLDERS = ("root", "layer", "expert", "leaf", "any")
"""What a template may hold in braces; `Rule` says what each means."""

_NUMBER = re.compile(r"\.(0|[1-9][0-9]*)(?=\.|$)")
"""A dotted step that is a number: a layer, an expert, or an index into a list of modules."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One naming pattern of a family.

    Attributes:
        template: a tensor name with placeholders: `{root}` is one of the family's roots, `{layer}`
            and `{expert}` are numbers counted from 0, `{leaf}` is one of `LEAVES` and is appended
            to the roles, `{any}` is the rest of a name (only for component `extra`).
        component: one of `COMPONENTS`.
        roles: what the tensor holds, in the order in which it is stacked. One role for most
            tensors; `("gate", "up")` for a fused gate_up projection.
        stacked: the leading axis is the expert axis; the roles then follow each other on the
            next axis, within each expert.
    """

    template: str
    component: str
    roles: tuple[str, ...]
    stacked: bool = False

    def __post_init__(self) -> None:
        assert self.component in COMPONENTS, self.component
        assert self.roles
        assert not self.stacked or "{expert}" not in self.template
        assert self.component == "extra" or "{any}" not in self.template


class Place(NamedTuple):
    """Where one stored tensor belongs."""

    rule: Rule
    layer: int | None
    expert: int | None
    roles: tuple[str, ...]

    @property
    def component(self) -> str:
        """The component that owns the whole tensor."""
        return self.rule.component


class _Fit(NamedTuple):
    """What all names share that differ only in their numbers."""

    rule: Rule
    layer: int | None
    """Which of the name's numbers is the layer."""
    expert: int | None
    roles: tuple[str, ...]


@dataclass(frozen=True)
class Matcher:
    """Finds the rules that fit a name; a second name of the same shape costs microseconds."""

    rules: tuple[Rule, ...]
    roots: tuple[str, ...]

    def place(self, name: str) -> Place | None:
        """The place of `name` if one of the same shape was seen before; `places` knows the rest."""
        steps = _NUMBER.split(name)
        fit = self._fits.get(tuple(steps[::2]))
        if fit is None:
            return None
        rule, layer, expert, roles = fit
        return Place(
            rule,
            None if layer is None else int(steps[2 * layer + 1]),
            None if expert is None else int(steps[2 * expert + 1]),
            roles,
        )

    def places(self, name: str) -> tuple[Place, ...]:
        """The places of `name`, one per component that claims it: none is unknown, two a clash."""
        place = self.place(name)
        return self._scan(name) if place is None else (place,)

    def closest_template(self, name: str) -> str | None:
        """The template that looks most like `name` once numbers are left out of account."""
        example = _NUMBER.sub(".#", name)
        if example not in self._closest:
            near = get_close_matches(example, self._shown, n=1, cutoff=0.6)
            self._closest[example] = self._shown[near[0]] if near else None
        return self._closest[example]

    def _scan(self, name: str) -> tuple[Place, ...]:
        found = [(rule, match) for p, rule in self._patterns if (match := p.fullmatch(name))]
        by_component: dict[str, Place] = {}
        for rule, match in found:
            by_component.setdefault(rule.component, _place(rule, match))
        if len(by_component) == 1 and self._only_shape_matters:
            rule, match = found[0]
            if "{any}" not in rule.template:
                at = {number.start(1): i for i, number in enumerate(_NUMBER.finditer(name))}
                layer, expert = (_which(match, hole, at) for hole in ("layer", "expert"))
                self._fits[tuple(_NUMBER.split(name)[::2])] = _Fit(
                    rule, layer, expert, _place(rule, match).roles
                )
        return tuple(by_component.values())

    @cached_property
    def _patterns(self) -> tuple[tuple[re.Pattern[str], Rule], ...]:
        return tuple((_compile(rule.template, self.roots), rule) for rule in self.rules)

    @cached_property
    def _fits(self) -> dict[tuple[str, ...], _Fit]:
        return {}

    @cached_property
    def _shown(self) -> dict[str, str]:
        shown = [rule.template.replace("{root}", self.roots[0]) for rule in self.rules]
        return {_NUMBER.sub(".#", _example(template)): template for template in shown}

    @cached_property
    def _closest(self) -> dict[str, str | None]:
        return {}

    @cached_property
    def _only_shape_matters(self) -> bool:
        """No template asks for one particular number."""
        return not any(_NUMBER.search(rule.template) for rule in self.rules)


def _compile(template: str, roots: tuple[str, ...]) -> re.Pattern[str]:
    by_length = sorted(roots, key=len, reverse=True)
    holes = {
        "root": "(?:" + "|".join(re.escape(root) for root in by_length) + ")",
        "layer": r"(?P<layer>0|[1-9][0-9]*)",
        "expert": r"(?P<expert>0|[1-9][0-9]*)",
        "leaf": "(?P<leaf>" + "|".join(LEAVES) + ")",
        "any": r"(?P<any>.+)",
    }
    literal_and_hole = re.split(r"\{(\w+)\}", template)
    parts = [re.escape(t) if i % 2 == 0 else holes[t] for i, t in enumerate(literal_and_hole)]
    return re.compile("".join(parts))


def _place(rule: Rule, match: re.Match[str]) -> Place:
    found = match.groupdict()
    layer, expert = found.get("layer"), found.get("expert")
    suffix = "".join("." + found[hole] for hole in ("leaf", "any") if found.get(hole))
    return Place(
        rule,
        None if layer is None else int(layer),
        None if expert is None else int(expert),
        tuple(role + suffix for role in rule.roles),
    )


def _which(match: re.Match[str], hole: str, at: dict[int, int]) -> int | None:
    return at[match.start(hole)] if hole in match.groupdict() else None


def _example(template: str) -> str:
    holes = {"{layer}": "0", "{expert}": "0", "{leaf}": "weight", "{any}": "weight"}
    for hole, filled in holes.items():
        template = template.replace(hole, filled)
    return template
