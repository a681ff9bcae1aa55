"""The forest plot: every configuration against a parent, with intervals that hold all at once."""

from collections.abc import Mapping, Sequence
from typing import Any

from moegraft.report.svg import (
    Scale,
    bar,
    dot,
    group,
    line,
    picture,
    scale_over,
    shorten,
    text,
)
from moegraft.report.verdict import established
from moegraft.report.words import points

_ROW, _TOP, _BOTTOM = 22, 30, 34
_WIDTH, _LEFT, _RIGHT = 474, 158, 346

_Test = tuple[str, Mapping[str, Any]]


def forest_plots(section: Mapping[str, Any], reference: str) -> list[str]:
    """One plot per condition that has tests against `reference`, all on one scale.

    The thin line is the simultaneous interval, the bar the interval of that one difference. A
    dot is filled where the verdict calls the difference established.

    Args:
        section: `subset` or `full` of a summary.
        reference: `host` or `donor`.
    """
    found = {about["name"]: _tests(section, about["name"], reference) for about in
             section["conditions"]}  # fmt: skip
    ends = [end for tests in found.values() for _, test in tests for end in test["simultaneous"]]
    if not ends:
        return []
    scale = scale_over([*ends, 0.0], _LEFT, _RIGHT)
    return [_plot(name, tests, reference, scale) for name, tests in found.items() if tests]


def _tests(section: Mapping[str, Any], condition: str, reference: str) -> list[_Test]:
    return [
        (cell["configuration"], test)
        for cell in section["cells"]
        if cell["condition"] == condition
        and (test := cell["against"].get(reference)) is not None
        and test["simultaneous"] is not None
    ]


def _plot(condition: str, tests: Sequence[_Test], reference: str, scale: Scale) -> str:
    bottom = _TOP + _ROW * len(tests)
    parts = [text(0, 14, condition, "title")]
    for tick in scale.ticks():
        place = scale(tick)
        parts.append(line(place, _TOP, place, bottom, "zero" if tick == 0 else "grid"))
        parts.append(text(place, bottom + 14, f"{100 * tick:g}", "quiet", "middle"))
    parts.append(line(scale(0.0), _TOP, scale(0.0), bottom, "zero"))
    middle = (scale.start + scale.stop) / 2
    parts.append(text(middle, bottom + 28, f"points above the {reference}", "quiet", "middle"))
    for place, (name, test) in enumerate(tests):
        parts.append(_row(name, test, _TOP + _ROW * (place + 0.5), scale))
    title = f"{condition}: differences from the {reference} in points, simultaneous intervals"
    return picture(_WIDTH, bottom + _BOTTOM, title, parts)


def _row(name: str, test: Mapping[str, Any], y: float, scale: Scale) -> str:
    value, (low, high), (near, far) = test["difference"], test["simultaneous"], test["interval"]
    tone = ("gain" if value > 0 else "loss") if established(test) else "open"
    number = points(value, sign=True)
    ends = f"[{points(low)}, {points(high)}]"
    shapes = [
        text(0, y + 4, shorten(name)),
        line(scale(low), y, scale(high), y, f"whisker {tone}"),
        bar(scale(near), scale(far), y, 5, f"inner {tone}"),
        dot(scale(value), y, f"dot {tone}"),
        text(_RIGHT + 42, y + 4, number, "number", "end"),
        text(_RIGHT + 47, y + 4, ends, "quiet"),
    ]
    title = f"{name}: {number} points, simultaneous {ends}, alone [{points(near)}, {points(far)}]"
    return group(title, shapes)
