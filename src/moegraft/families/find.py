"""Which family a checkpoint belongs to: from the catalogue, or from the user's `family.yaml`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

from moegraft.config import STRICT, load_recipe
from moegraft.errors import FamilyError
from moegraft.families.catalog import FAMILIES
from moegraft.families.names import COMPONENTS, PLACEHOLDERS, Rule
from moegraft.families.spec import Family


@dataclass(frozen=True, slots=True)
class Pattern:
    """One tensor naming pattern of a `family.yaml`.

    Raises:
        ValueError: the pattern contradicts itself; `load_family_map` adds file and place.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    template: str
    """A tensor name with `{root}`, `{layer}`, `{expert}`, `{leaf}` or `{any}` in it."""
    component: str
    """One of the components of `moegraft.families.COMPONENTS`."""
    roles: tuple[str, ...] = ()
    """What the tensor holds, in stacking order; taken from the template when left out."""
    stacked: bool = False
    """The leading axis is the expert axis."""

    def __post_init__(self) -> None:
        if self.component not in COMPONENTS:
            raise ValueError(_expected("component", self.component, COMPONENTS))
        holes = re.findall(r"\{(.*?)\}", self.template)
        if re.search(r"[{}]", re.sub(r"\{.*?\}", "", self.template)):
            raise ValueError("unbalanced brace")
        for hole in holes:
            if hole not in PLACEHOLDERS:
                raise ValueError(_expected("placeholder", hole, PLACEHOLDERS))
            if holes.count(hole) > 1:
                raise ValueError(f"placeholder {{{hole}}} stands twice in one template")
        if "any" in holes and self.component != "extra":
            raise ValueError("{any} is for component extra only; name the tensor in full")
        if self.stacked and "expert" in holes:
            raise ValueError("a stacked template holds all experts; drop {expert} or stacked")
        if self.component == "experts" and not self.stacked and "expert" not in holes:
            raise ValueError("a template of experts needs {expert}, or stacked: true")
        if len(self.roles) != len(set(self.roles)):
            raise ValueError(f"roles repeat: {', '.join(self.roles)}")

    def rule(self) -> Rule:
        """The pattern as a rule of a family."""
        roles = self.roles or (_role(self.template),)
        return Rule(self.template, self.component, roles, self.stacked)


@dataclass(frozen=True, slots=True)
class FamilyMap:
    """A `family.yaml`: a new family, or what a known one lacks.

    Keys that are left out come from the family named under `extends`, if any.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    name: str
    """`model_type` of config.json."""
    extends: str | None = None
    """A family of the catalogue to start from."""
    patterns: tuple[Pattern, ...] = ()
    """Added before the inherited ones; the same template replaces the inherited pattern."""
    roots: tuple[str, ...] | None = None
    """Alternatives for `{root}`, the live module's first; `model.` when left out."""
    text_config: str | None = None
    num_layers_key: str | None = None
    num_experts_key: str | None = None
    top_k_key: str | None = None
    ffn_key: str | None = None
    router_module: str | None = None
    experts_module: str | None = None
    extra_layers_key: str | None = None
    branching_cache: bool | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if self.extends is not None and self.extends not in FAMILIES:
            raise ValueError(_expected("family under extends", self.extends, tuple(FAMILIES)))
        if not self.patterns and self.extends is None:
            raise ValueError("needs patterns, or a family to extend")

    def family(self) -> Family:
        """The family that the file describes."""
        known = FAMILIES[self.extends] if self.extends else Family(name=self.name, rules=())
        own = tuple(pattern.rule() for pattern in self.patterns)
        replaced = {rule.template for rule in own}
        inherited = tuple(rule for rule in known.rules if rule.template not in replaced)
        said = {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.name not in ("name", "extends", "patterns")
            and getattr(self, one.name) is not None
        }
        return replace(
            known, name=self.name, rules=own + inherited, aliases=(), architectures=(), **said
        )


def load_family_map(path: Path | str) -> Family:
    """The family described by the YAML file at `path` (see docs/adding-a-family.md).

    Raises:
        RecipeError: the file is missing or is no valid description; names the offending key.
    """
    return load_recipe(path, FamilyMap).family()


def find_family(
    config: Mapping[str, Any],
    family_map: Path | str | None = None,
    *,
    where: str = "config.json",
) -> Family:
    """The family of the checkpoint with this config.json, bound to its number of layers.

    Args:
        config: content of config.json.
        family_map: a `family.yaml` that is used instead of the catalogue.
        where: opens the message.

    Raises:
        FamilyError: `model_type` and `architectures` are not in the catalogue.
        RecipeError: as `load_family_map`.
        CheckpointError: as `Family.for_config`.
    """
    if family_map is not None:
        return load_family_map(family_map).for_config(config)
    model_type = config.get("model_type")
    named = [f for f in FAMILIES.values() if model_type in (f.name, *f.aliases)]
    classes = config.get("architectures")
    classes = classes if isinstance(classes, list) else []
    by_class = [f for f in FAMILIES.values() if set(f.architectures) & {str(c) for c in classes}]
    if not named and (model_type is not None or not by_class):
        raise FamilyError(f"{where}: {_unknown(model_type, classes)}")
    return (named or by_class)[0].for_config(config)


def _unknown(model_type: object, classes: list[Any]) -> str:
    names = [name for f in FAMILIES.values() for name in (f.name, *f.aliases)]
    near = get_close_matches(str(model_type), names, n=1, cutoff=0.5)
    closest = f" (closest: {near[0]})" if near else ""
    of_class = f", architectures {', '.join(map(str, classes))}" if classes else ""
    return (
        f"model_type {model_type!r}{of_class} is not in the catalogue; expected one "
        f"of {', '.join(FAMILIES)}{closest}. Describe it with --map family.yaml "
        "(docs/adding-a-family.md)"
    )


def _role(template: str) -> str:
    """What distinguishes the tensor among those of its layer and expert."""
    bare = re.sub(r"\{root\}|layers\.\{layer\}\.|\{\w+\}", "", template)
    return re.sub(r"\.{2,}", ".", bare).strip(".") or template


def _expected(what: str, got: str, known: tuple[str, ...]) -> str:
    near = get_close_matches(got, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown {what} {got!r}, expected one of {', '.join(known)}{hint}"
