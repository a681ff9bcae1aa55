"""The README's table of families, generated from the catalogue."""

from moegraft.families.catalog import FAMILIES
from moegraft.families.spec import Family

_USUAL = {"embedding", "attention", "router", "experts", "norm", "lm_head", "extra"}


def families_table() -> str:
    """The catalogue as a Markdown table, one line per family, without trailing newline."""
    head = (
        "| family | experts on disk | other components | prefix sharing | notes |",
        "| --- | --- | --- | --- | --- |",
    )
    return "\n".join((*head, *(_line(family) for family in FAMILIES.values())))


def _line(family: Family) -> str:
    present = [rule.component for rule in family.rules]
    others = dict.fromkeys(name for name in present if name not in _USUAL)
    cells = (
        f"`{family.name}`",
        _layouts(family),
        ", ".join(f"`{name}`" for name in others) or "none",
        "yes" if family.branching_cache else "no",
        family.note,
    )
    return "| " + " | ".join(cells) + " |"


def _layouts(family: Family) -> str:
    if not family.is_moe:
        return "dense"
    one_by_one = any("{expert}" in rule.template for rule in family.rules)
    return "one by one, or fused" if one_by_one else "fused"
