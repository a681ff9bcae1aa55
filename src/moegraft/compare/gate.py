"""Block a release that lost something: non-inferiority of a new model to the deployed one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal
from xml.etree import ElementTree

import numpy as np

from moegraft.compare.clusters import design_effect
from moegraft.compare.results import Paired, Pairing
from moegraft.config import STRICT
from moegraft.errors import RecipeError, ResultsError
from moegraft.report.words import p_value, points
from moegraft.stats import holm, items_for_margin, noninferiority, resolvable_margin
from moegraft.stats.power import POWER

SCHEMA = 1
DISCORDANCE = 0.1
"""Share of items that exactly one of two close siblings solves, where nothing better is known."""

_TINY_MARGIN = 1e-9

Verdict = Literal["pass", "regressed", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of a suite, and the loss that it must rule out."""

    __pydantic_config__: ClassVar[Any] = STRICT

    condition: str
    """A task under a prompting, the YAML file of a task or command, or the name that existing
    results give it."""
    margin_points: float
    """The loss, in percentage points, that is not accepted."""
    num_items: int | None = None
    """Only for `--plan`, where neither results nor the task's data are at hand."""
    discordance: float = DISCORDANCE
    """Expected share of items that exactly one of the two models solves; only for `--plan`."""

    def __post_init__(self) -> None:
        if not 0 < self.margin_points <= 100:
            raise RecipeError(
                f"{self.condition}: margin_points: expected more than 0 and at most 100 points, "
                f"got {self.margin_points:g}"
            )
        if not 0 < self.discordance <= 1:
            raise RecipeError(
                f"{self.condition}: discordance: expected a share of the items (0 to 1), "
                f"got {self.discordance:g}"
            )

    @property
    def margin(self) -> float:
        """As a fraction."""
        return self.margin_points / 100


@dataclass(frozen=True, slots=True)
class Suite:
    """What a release must not lose: conditions with margins, and how they are evaluated.

    Raises:
        RecipeError: no conditions, one twice, or a number that cannot be used.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    conditions: tuple[Check, ...]
    alpha: float = 0.05
    """Highest chance that a model which loses a margin passes."""
    power: float = POWER
    """Chance that an equally good model passes, for plans and items needed."""
    limit: int | Literal["all"] = "all"
    """Items per condition, where models are evaluated."""
    seed: int = 0
    dtype: str = "auto"
    chat_template: bool = True
    metric: str | None = None
    """Which metric of existing results to take, as `metric` or `metric,filter`."""

    def __post_init__(self) -> None:
        names = [check.condition for check in self.conditions]
        if not names:
            raise RecipeError("conditions: expected at least one, with its margin_points")
        for name in names:
            if names.count(name) > 1:
                raise RecipeError(f"conditions: {name!r} stands twice")
        for key, value in (("alpha", self.alpha), ("power", self.power)):
            if not 0 < value < 1:
                raise RecipeError(f"{key}: expected a probability between 0 and 1, got {value:g}")


def gate(suite: Suite, pairing: Pairing) -> dict[str, Any]:
    """Test the second model of `pairing` against the first, the deployed one.

    A condition passes when a loss of its margin is ruled out, at level `alpha` each: the gate
    passes only if all do, so the chance to pass with a lost margin is at most `alpha` whatever the
    number of conditions (intersection-union test, Berger 1982). It has regressed when any loss is
    established, Holm-adjusted over the conditions, so that a suite of many conditions does not cry
    wolf. Otherwise it is inconclusive.

    Returns:
        JSON-ready: `verdict`, and per condition the difference, its bounds, p values, the verdict,
        the items it would take, and a sentence.

    Raises:
        ResultsError: a condition of the suite is missing, or scores leave [0, 1].
    """
    found = {one.condition: one for one in pairing.conditions}
    checks = []
    for check in suite.conditions:
        if check.condition not in found:
            known = ", ".join(found)
            raise ResultsError(
                f"{check.condition}: in the suite, but not in the results of both models "
                f"(they have {known}); --rename OLD=NEW gives a condition its name"
            )
        checks.append(_test(check, found[check.condition], suite))
    for entry, p in zip(checks, holm([entry["loss_p"] for entry in checks]), strict=True):
        entry["loss_adjusted_p"] = p
        entry["verdict"] = _verdict(entry, suite.alpha)
        entry["sentence"] = _sentence(entry, pairing.models)
    verdicts = [entry["verdict"] for entry in checks]
    overall = next((v for v in ("regressed", "inconclusive") if v in verdicts), "pass")
    return {
        "schema": SCHEMA,
        "verdict": overall,
        "old": pairing.models[0],
        "new": pairing.models[1],
        "sources": dict(pairing.sources),
        "alpha": suite.alpha,
        "power": suite.power,
        "conditions": checks,
        "notes": list(pairing.notes),
    }


def plan(
    suite: Suite,
    num_items: Mapping[str, int],
    discordances: Mapping[str, float] | None = None,
    design_effects: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """What margin each condition can resolve, before anything is evaluated.

    Args:
        suite: the conditions with their margins.
        num_items: items of each condition.
        discordances: observed ones, where both models have results; else each check's own.
        design_effects: of items that share a text, where results say which do; else 1.

    Returns:
        Per condition `num_items`, `resolvable` (a fraction), whether it carries the suite's
        margin, and the items that the margin takes.
    """
    planned = []
    for check in suite.conditions:
        discordance = (discordances or {}).get(check.condition, check.discordance)
        effect = (design_effects or {}).get(check.condition, 1.0)
        how = {"alpha": suite.alpha, "power": suite.power, "design_effect": effect}
        smallest = resolvable_margin(num_items[check.condition], discordance, **how)
        planned.append(
            {
                "condition": check.condition,
                "num_items": num_items[check.condition],
                "discordance": discordance,
                "design_effect": effect,
                "margin": check.margin,
                "resolvable": smallest,
                "carried": smallest <= check.margin,
                "items_needed": items_for_margin(check.margin, discordance, **how),
            }
        )
    return planned


def junit(result: Mapping[str, Any]) -> str:
    """The result of `gate` as JUnit XML: a failure per regression, an error per open question."""
    verdicts = [entry["verdict"] for entry in result["conditions"]]
    suite = ElementTree.Element(
        "testsuite",
        name=f"moegraft gate {result['old']} {result['new']}",
        tests=str(len(verdicts)),
        failures=str(verdicts.count("regressed")),
        errors=str(verdicts.count("inconclusive")),
    )
    for entry in result["conditions"]:
        case = ElementTree.SubElement(
            suite, "testcase", classname="moegraft.gate", name=entry["condition"]
        )
        tag = {"regressed": "failure", "inconclusive": "error"}.get(entry["verdict"])
        if tag is not None:
            told = ElementTree.SubElement(
                case, tag, type=entry["verdict"], message=entry["sentence"]
            )
            told.text = entry["sentence"]
        else:
            ElementTree.SubElement(case, "system-out").text = entry["sentence"]
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def observed_discordance(one: Paired) -> float:
    """Mean squared difference of the two models: for 0/1 scores the share that one solves."""
    return float(np.mean((one.scores[:, 1] - one.scores[:, 0]) ** 2))


def _test(check: Check, one: Paired, suite: Suite) -> dict[str, Any]:
    if one.scores.min() < 0 or one.scores.max() > 1:
        raise ResultsError(f"{one.condition}: a margin in points needs scores between 0 and 1")
    old, new = one.scores[:, 0], one.scores[:, 1]
    how = {"clusters": one.clusters, "alpha": suite.alpha}
    found = noninferiority(new, old, check.margin, **how)
    loss = noninferiority(old, new, _TINY_MARGIN, **how)
    difference = found.estimate.value
    discordance = observed_discordance(one)
    return {
        "condition": check.condition,
        "margin": check.margin,
        "num_items": len(one.items),
        "prompts": one.prompts,
        "old": float(old.mean()),
        "new": float(new.mean()),
        "difference": difference,
        "bounds": [found.estimate.interval.low, found.estimate.interval.high],
        "p": found.p_value,
        "loss_p": loss.p_value,
        "discordance": discordance,
        "items_needed": items_for_margin(
            check.margin,
            discordance,
            difference=difference,
            alpha=suite.alpha,
            power=suite.power,
            design_effect=design_effect(new - old, one.clusters),
        ),
    }


def _verdict(entry: Mapping[str, Any], alpha: float) -> Verdict:
    if entry["p"] < alpha:
        return "pass"
    return "regressed" if entry["loss_adjusted_p"] < alpha else "inconclusive"


def _sentence(entry: Mapping[str, Any], models: Sequence[str]) -> str:
    low, high = entry["bounds"]
    old, new = models[:2]
    size = (
        f"{points(entry['difference'], sign=True)} points, one-sided bounds "
        f"[{points(low)}, {points(high)}]"
    )
    margin = f"{points(entry['margin'])} points"
    if entry["verdict"] == "pass":
        lead = f"{new} against {old}: a loss of {margin} is ruled out"
        return f"{lead} ({size}, {p_value(entry['p'])})."
    if entry["verdict"] == "regressed":
        adjusted = p_value(entry["loss_adjusted_p"])
        return f"{new} lost against {old} ({size}, adjusted {adjusted}; margin {margin})."
    text = (
        f"{new} against {old}: neither is a loss of {margin} ruled out nor any loss established "
        f"({size}, {entry['num_items']:,} items)"
    )
    if entry["items_needed"] is None:
        return f"{text}; if the difference is as observed, no number of items will let it pass."
    return f"{text}; if the difference is as observed, it takes {entry['items_needed']:,} items."
