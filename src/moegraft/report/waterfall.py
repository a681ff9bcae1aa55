"""The waterfall: Shapley shares of the way from host to donor, one component after the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moegraft.report.heatmap import find_pairs
from moegraft.report.items import components_of, configuration_order
from moegraft.report.summary import find_cell
from moegraft.report.svg import (
    Scale,
    bar,
    direction,
    group,
    line,
    picture,
    scale_over,
    shorten,
    text,
)
from moegraft.report.words import points

_ROW, _TOP, _BOTTOM = 34, 26, 34
_WIDTH, _LEFT, _RIGHT = 478, 92, 350


@dataclass(frozen=True, slots=True)
class _Step:
    label: str
    start: float
    value: float
    interval: tuple[float, float] | None
    """Of the step; None for a level that is reached."""


def waterfall(section: Mapping[str, Any], condition: str) -> str:
    """Host, the share of each component, all of them, what the rest does, donor.

    The line on a step is its simultaneous interval: over all effects for components, over all
    pairs for the rest. Empty where the run has no full factorial under the condition.
    """
    steps = _steps(section, condition)
    if not steps:
        return ""
    ends = [end for step in steps for end in _reach(step)]
    scale = scale_over(ends, _LEFT, _RIGHT)
    bottom = _TOP + _ROW * len(steps)
    parts = [text(0, 14, "Shapley shares of the way from host to donor", "quiet")]
    for tick in scale.ticks():
        parts.append(line(scale(tick), _TOP, scale(tick), bottom, "grid"))
        parts.append(text(scale(tick), bottom + 14, f"{100 * tick:g}", "quiet", "middle"))
    middle = (_LEFT + _RIGHT) / 2
    parts.append(text(middle, bottom + 28, "accuracy (%)", "quiet", "middle"))
    for place, step in enumerate(steps):
        y = _TOP + _ROW * (place + 0.5)
        if place + 1 < len(steps):
            reached = scale(step.start + step.value)
            parts.append(line(reached, y, reached, y + _ROW, "link"))
        parts.append(_draw(step, y, scale))
    title = f"{condition}: Shapley shares of the way from host to donor"
    return picture(_WIDTH, bottom + _BOTTOM, title, parts)


def _steps(section: Mapping[str, Any], condition: str) -> list[_Step]:
    shares = sorted(
        (e for e in section["effects"]
         if e["kind"] == "shapley" and e["condition"] == condition),
        key=lambda effect: configuration_order(effect["components"][0]),
    )  # fmt: skip
    host, donor = (find_cell(section, name, condition) for name in ("host", "donor"))
    if not shares or host is None:
        return []
    level = float(host["score"])
    steps = [_Step("host", level, 0.0, None)]
    for share in shares:
        low, high = share["simultaneous"]
        steps.append(_Step(share["components"][0], level, share["value"], (low, high)))
        level += share["value"]
    whole = frozenset(share["components"][0] for share in shares)
    if donor is None or "rest" in whole:
        return [*steps, _Step("donor" if donor else "all of them", level, 0.0, None)]
    steps.append(_Step("all of these", level, 0.0, None))
    name = next(
        cell["configuration"] for cell in section["cells"]
        if frozenset(components_of(cell["configuration"])) == whole
    )  # fmt: skip
    found = find_pairs(section, condition).get(("donor", name))
    if found is not None:
        low, high = found[1]
        steps.append(_Step("all else", level, found[0], (low, high)))
        steps.append(_Step("donor", level + found[0], 0.0, None))
    return steps


def _reach(step: _Step) -> list[float]:
    ends = [] if step.interval is None else [step.start + end for end in step.interval]
    return [step.start, step.start + step.value, *ends]


def _draw(step: _Step, y: float, scale: Scale) -> str:
    start, stop = scale(step.start), scale(step.start + step.value)
    label = text(0, y + 4, shorten(step.label, 14))
    if step.interval is None:
        said = f"{points(step.start)} %"
        level = line(start, y - 11, start, y + 11, "level")
        return group(f"{step.label}: {said}", [label, level, _number(y, said, "strong"), ""])
    tone = direction(step.value, step.interval)
    low, high = step.interval
    ends = f"[{points(low)}, {points(high)}]"
    shapes = [
        label,
        bar(start, stop, y, 16, f"step {tone}"),
        line(scale(step.start + low), y, scale(step.start + high), y, f"whisker {tone} on-step"),
        _number(y, points(step.value, sign=True), "number"),
        text(_RIGHT + 52, y + 4, ends, "quiet"),
    ]
    return group(f"{step.label}: {points(step.value, sign=True)} points {ends}", shapes)


def _number(y: float, said: str, style: str) -> str:
    return text(_RIGHT + 46, y + 4, said, style, "end")
