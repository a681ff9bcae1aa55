"""The 2^3 cube: accuracies on its corners, what moving one component changes on its edges."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from moegraft.report.heatmap import find_pairs
from moegraft.report.items import COMPONENT_ORDER, components_of, configuration_order
from moegraft.report.svg import direction, dot, group, line, picture, text
from moegraft.report.words import points

_Part = frozenset[str]
_Steps = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 440, 350
_ORIGIN = (70.0, 292.0)
_STEPS: Mapping[int, _Steps] = {
    1: ((230.0, 0.0),),
    2: ((230.0, 0.0), (0.0, -190.0)),
    3: ((210.0, 0.0), (92.0, -70.0), (0.0, -178.0)),
}
"""Where moving a component leads: right, into the depth, up."""
_AXES = {(230.0, 0.0): "→", (210.0, 0.0): "→", (92.0, -70.0): "↗", (0.0, -190.0): "↑",
         (0.0, -178.0): "↑"}  # fmt: skip


def cubes(section: Mapping[str, Any], condition: str) -> list[str]:
    """The factorial of a condition as a cube; with a fourth component two, without and with it.

    Empty where the run has no full factorial under the condition.
    """
    components = sorted(
        (e["components"][0] for e in section["effects"]
         if e["kind"] == "main" and e["condition"] == condition),
        key=configuration_order,
    )  # fmt: skip
    if not components:
        return []
    axes, others = components[:3], components[3:]
    fixed = [frozenset(some) for size in range(len(others) + 1)
             for some in combinations(others, size)]  # fmt: skip
    names = _names(section, condition, components)
    return [_cube(section, condition, axes, states, names) for states in fixed[:2]]


def _names(
    section: Mapping[str, Any], condition: str, components: Sequence[str]
) -> dict[_Part, str]:
    cells = {cell["configuration"] for cell in section["cells"] if cell["condition"] == condition}
    parts = {frozenset(components_of(name)): name for name in cells if name != "donor"}
    if "rest" in components and "donor" in cells:
        parts.setdefault(frozenset(components), "donor")
    return parts


def _cube(
    section: Mapping[str, Any],
    condition: str,
    axes: Sequence[str],
    fixed: _Part,
    names: Mapping[_Part, str],
) -> str:
    corners = [frozenset(some) for size in range(len(axes) + 1)
               for some in combinations(axes, size)]  # fmt: skip
    pairs = find_pairs(section, condition)
    scores = {c["configuration"]: c for c in section["cells"] if c["condition"] == condition}
    lines, labels = [], []
    for corner in corners:
        for axis in (axis for axis in axes if axis not in corner):
            found = pairs.get((names[corner | {axis} | fixed], names[corner | fixed]))
            if found is not None:
                drawn, label = _edge(corner, axis, axes, *found)
                lines.append(drawn)
                labels.append(label)
    marks = [_corner(corner, axes, fixed, scores[names[corner | fixed]]) for corner in corners]
    title = f"{condition}: accuracy of every composition of {', '.join(axes)}"
    if fixed:
        title += f", with the donor's {' and '.join(sorted(fixed))}"
    heading = text(0, 14, title.partition(": ")[2], "quiet")
    parts = [heading, *_directions(axes), *lines, *marks, *labels]
    return picture(_WIDTH, _HEIGHT, title, parts)


def _place(corner: _Part, axes: Sequence[str]) -> tuple[float, float]:
    x, y = _ORIGIN
    for axis, (right, down) in zip(axes, _STEPS[len(axes)], strict=True):
        if axis in corner:
            x, y = x + right, y + down
    return x, y


def _edge(
    corner: _Part, axis: str, axes: Sequence[str], value: float, interval: Sequence[float]
) -> tuple[str, str]:
    (x1, y1), (x2, y2) = _place(corner, axes), _place(corner | {axis}, axes)
    tone = direction(value, interval)
    low, high = (points(end) for end in interval)
    said = points(value, sign=True)
    title = f"{axis} on {'+'.join(sorted(corner)) or 'the host'}: {said} [{low}, {high}]"
    share = 0.5
    if len(axes) == 3 and axis != axes[1]:  # clear of where edges in front and behind cross
        share = 0.36 if axes[1] in corner else 0.63
    x, y = x1 + share * (x2 - x1), y1 + share * (y2 - y1)
    drawn = group(title, [line(x1, y1, x2, y2, f"edge {tone}")])
    return drawn, group(title, [text(x, y + 4, said, f"on-edge {tone}", "middle")])


def _corner(corner: _Part, axes: Sequence[str], fixed: _Part, cell: Mapping[str, Any]) -> str:
    x, y = _place(corner, axes)
    name = "+".join(axis[0].upper() for axis in axes if axis in corner) or "host"
    if fixed:
        name = f"{name}+{'+'.join(sorted(fixed))}".removeprefix("host+")
    deep = len(axes) == 3 and axes[1] in corner
    high = axes[-1] in corner if len(axes) > 1 else False
    anchor, shift = ("start", 10) if deep else ("end", -10)
    drop = -8 if high else 18
    low, up = cell["bootstrap"]
    title = f"{cell['configuration']}: {points(cell['score'])} % [{points(low)}, {points(up)}]"
    return group(
        title,
        [
            dot(x, y, "corner", 5),
            text(x + shift, y + drop - 2, points(cell["score"]), "strong halo", anchor),
            text(x + shift, y + drop + 11, name, "quiet halo", anchor),
        ],
    )


def _directions(axes: Sequence[str]) -> list[str]:
    order = [name for name in COMPONENT_ORDER if name in axes]
    order += [name for name in axes if name not in order]
    arrows = [_AXES[step] for step in _STEPS[len(axes)]]
    said = "   ".join(f"{arrow} {name}" for name, arrow in zip(order, arrows, strict=True))
    return [text(0, _HEIGHT - 8, said, "quiet")]
