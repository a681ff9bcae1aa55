"""Figures as SVG and PNG; the only place that imports matplotlib."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moegraft.report.items import components_of, is_composition
from moegraft.report.summary import Summary, find_cell
from moegraft.report.words import column_title

INK = "#1f2328"
"""Colour of text and axes on a light page; the HTML report puts the page's own colour there."""

_PAPER, _NIGHT, _PALE = "#ffffff", "#0d1117", "#e6edf3"
# Okabe and Ito's palette: told apart by colour-blind readers, and on both backgrounds.
_COLOURS = {
    "router": "#E69F00",
    "attention": "#0072B2",
    "experts": "#009E73",
    "rest": "#CC79A7",
}
_NIGHT_COLOURS = {**_COLOURS, "attention": "#56B4E9"}
_MARKERS = {"router": "s", "attention": "o", "experts": "D", "rest": "^"}
_OTHER = "#999999"


Effect = tuple[str, float, float, float]
"""Component, value, and the ends of its interval, as fractions."""
Groups = dict[str, list[Effect]]
"""Effects by condition."""


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def write_figures(summary: Summary, folder: Path) -> dict[str, Path]:
    """Draw the effects of the components per condition, with paired 95% intervals.

    `effects`: each component moved alone, against the host (the paper's Figure 1, which has no
    intervals). `main-effects`: averaged over all states of the other components, where the run
    is a full factorial. Each as SVG and PNG, and as SVG for dark pages. Equal input gives equal
    bytes with one version of matplotlib; a figure without data is left out.
    """
    drawn = {
        "effects": (_single_effects(summary), "difference from the host (points)"),
        "main-effects": (_main_effects(summary), "main effect (points)"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, (groups, label) in drawn.items():
        for file, suffix, dark in (
            (f"{name}.svg", "svg", False),
            (f"{name}.png", "png", False),
            (f"{name}-dark.svg", "svg", True),
        ):
            if groups:
                paths[file] = folder / file
                paths[file].write_bytes(_draw(groups, label, suffix, dark=dark))
    return paths


def _single_effects(summary: Summary) -> Groups:
    section = summary["subset"]
    found: Groups = {}
    for about in section["conditions"]:
        for name in summary["configurations"]:
            cell = find_cell(section, name, about["name"])
            test = cell["against"].get("host") if cell else None
            single = is_composition(name) and len(components_of(name)) == 1
            if single and test and test["interval"]:
                effect = (name, test["difference"], *test["interval"])
                found.setdefault(about["name"], []).append(effect)
    return found


def _main_effects(summary: Summary) -> Groups:
    found: Groups = {}
    for effect in summary["subset"]["effects"]:
        if effect["kind"] == "main":
            entry = (effect["components"][0], effect["value"], *effect["interval"])
            found.setdefault(effect["condition"], []).append(entry)
    return found


@contextmanager
def drawing(width: float, height: float) -> Iterator[Any]:
    """An empty figure of that many inches, in the reports' style; draw and render it within."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "moegraft", "svg.fonttype": "none", "font.family": "sans-serif"}
    with rc_context({**style, "font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def tones(*, dark: bool) -> tuple[str, str]:
    """Colour of text and axes, and of the page behind them."""
    return (_PALE, _NIGHT) if dark else (INK, _PAPER)


def _draw(groups: Groups, label: str, suffix: str, *, dark: bool) -> bytes:
    ink, page = tones(dark=dark)
    colours = _NIGHT_COLOURS if dark else _COLOURS
    components = list(dict.fromkeys(effect[0] for effects in groups.values() for effect in effects))
    with drawing(max(4.2, 1.1 + 1.45 * len(groups)), 3.3) as figure:
        axes = figure.add_subplot()
        axes.axhline(0, color=ink, linewidth=0.8)
        for place, effects in enumerate(groups.values()):
            for effect in effects:
                spread = components.index(effect[0]) - (len(components) - 1) / 2
                _draw_point(axes, place + 0.2 * spread, effect, colours, page)
        axes.set_xticks(range(len(groups)), [_tick(condition) for condition in groups])
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set_ylabel(label)
        axes.margins(y=0.08)
        for name in components:
            colour = colours.get(name, _OTHER)
            axes.plot([], [], _MARKERS.get(name, "v"), color=colour, label=f"donor's {name}")
        figure.legend(
            loc="outside upper center", ncols=len(components), frameon=False, labelcolor=ink
        )
        dress(axes, ink)
        return render(figure, suffix, page)


def _draw_point(axes: Any, x: float, effect: Effect, colours: Mapping[str, str], page: str) -> None:
    """A marker with its interval, hollow where the interval includes 0."""
    name, (value, low, high) = effect[0], (100 * number for number in effect[1:])
    colour = colours.get(name, _OTHER)
    axes.errorbar(
        [x],
        [value],
        yerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
        fmt=_MARKERS.get(name, "v"),
        color=colour,
        markerfacecolor=page if low <= 0 <= high else colour,
        markersize=6,
        markeredgewidth=1.4,
        capsize=3,
        elinewidth=1.6,
    )


def dress(axes: Any, ink: str) -> None:
    """Give axes the reports' look."""
    axes.patch.set_alpha(0)
    axes.grid(axis="y", color=ink, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=ink, length=0)
    axes.yaxis.label.set_color(ink)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(ink)


def render(figure: Any, suffix: str, page: str) -> bytes:
    """The figure as `svg` (transparent) or `png`; equal figures give equal bytes."""
    target = io.BytesIO()
    if suffix == "svg":
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    else:
        figure.savefig(target, format="png", dpi=200, facecolor=page, metadata={"Software": None})
    return target.getvalue()


def _tick(condition: str) -> str:
    return "\n".join(part for part in column_title(condition) if part)
