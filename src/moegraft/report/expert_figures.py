"""Figures of chosen experts: domain x expert maps, and frequency against deviation."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from moegraft.report.figures import drawing, dress, render, tones

Content = Mapping[str, Any]
Box = tuple[float, float, float, float]
"""Left, low, right, high."""

_MAX_LAYERS = 16
_COLUMNS = 4
_LABEL = 7.0
"""Size of the experts' numbers."""
_CHOSEN, _OTHER = "#D55E00", "#8a9199"  # the first is Okabe and Ito's


def write_expert_figures(found: Content, folder: Path) -> dict[str, Path]:
    """Draw `expert-domains` and `expert-deviation`: every layer, or 16 spread over the depth.

    Args:
        found: what `Identification.as_dict` returns.
        folder: made when missing.

    Returns:
        Paths by file name: each figure as SVG, as PNG, and as SVG for dark pages.
    """
    figures: dict[str, Callable[..., bytes]] = {
        "expert-domains": _draw_maps,
        "expert-deviation": _draw_deviations,
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, draw in figures.items():
        for file, suffix, dark in (
            (f"{name}.svg", "svg", False),
            (f"{name}.png", "png", False),
            (f"{name}-dark.svg", "svg", True),
        ):
            paths[file] = folder / file
            paths[file].write_bytes(draw(found, suffix, dark=dark))
    return paths


def _places(found: Content) -> list[int]:
    """Positions of the layers that are drawn."""
    count = len(found["layers"])
    spread = np.linspace(0, count - 1, min(count, _MAX_LAYERS)).round().astype(int)
    return spread.tolist()


def _numbers(found: Content, place: int) -> list[int]:
    """Columns of the chosen experts; shared ones follow the routed."""
    names = [expert["expert"] for expert in found["layers"][place]["chosen"]]
    return [
        name if isinstance(name, int) else found["num_experts"] + int(name.split(":")[1])
        for name in names
    ]


def _title(found: Content, place: int) -> str:
    layer = found["layers"][place]["layer"]
    return f"layer {layer}" if isinstance(layer, int) else str(layer)


def _draw_maps(found: Content, suffix: str, *, dark: bool) -> bytes:
    ink, page = tones(dark=dark)
    use = 100 * np.array(found["frequency"])
    places, domains = _places(found), found["domains"]
    num_columns = use.shape[2]
    height = 0.6 + len(places) * (0.5 + 0.16 * len(domains))
    with drawing(min(13.0, 2.6 + 0.12 * num_columns), height) as figure:
        grid = figure.subplots(len(places), 1, sharex=True, squeeze=False)[:, 0]
        mesh = None
        for axes, place in zip(grid, places, strict=True):
            mesh = axes.pcolormesh(
                use[:, place], cmap="viridis", vmin=0, vmax=use.max(), rasterized=True
            )
            for column in _numbers(found, place):
                box = [column, column, column + 1, column + 1, column]
                edges = [0, len(domains), len(domains), 0, 0]
                axes.plot(box, edges, color=_CHOSEN, linewidth=1.6, clip_on=False)
            axes.set_yticks([spot + 0.5 for spot in range(len(domains))], domains)
            axes.set_ylim(len(domains), 0)
            axes.set_title(_title(found, place), color=ink, fontsize=9, loc="left")
            axes.tick_params(colors=ink, length=0, labelsize=7)
            axes.spines[:].set_visible(False)
        shown = range(0, num_columns, max(1, -(-num_columns // 16)))
        grid[-1].set_xticks([spot + 0.5 for spot in shown], [_column(found, c) for c in shown])
        grid[-1].set_xlabel("expert (chosen ones framed)", color=ink)
        bar = figure.colorbar(mesh, ax=list(grid), fraction=0.03, pad=0.02, aspect=30)
        bar.set_label("% of the domain's tokens", color=ink)
        bar.ax.tick_params(colors=ink, length=0)
        bar.outline.set_visible(False)
        return render(figure, suffix, page)


def _column(found: Content, column: int) -> str:
    routed = column < found["num_experts"]
    return str(column) if routed else f"s{column - found['num_experts']}"


def _draw_deviations(found: Content, suffix: str, *, dark: bool) -> bytes:
    ink, page = tones(dark=dark)
    use = 100 * np.array(found["frequency"])
    mean = use.mean(axis=0)
    deviation = np.abs(use - mean).mean(axis=0)
    places = _places(found)
    columns = min(_COLUMNS, len(places))
    rows = -(-len(places) // columns)
    with drawing(0.6 + 2.5 * columns, 0.8 + 2.2 * rows) as figure:
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.ravel()[len(places) :]:
            axes.set_visible(False)
        for axes, place in zip(grid.ravel(), places, strict=False):
            _scatter(axes, mean[place], deviation[place], _numbers(found, place))
            _name(axes, mean[place], deviation[place], found, place=place, ink=ink)
            axes.set_title(_title(found, place), color=ink, fontsize=9)
            dress(axes, ink)
        for axes in grid[:, 0]:
            axes.set_ylabel("deviation C (points)")
        figure.supxlabel("mean frequency over domains A (% of tokens)", color=ink, fontsize=9)
        return render(figure, suffix, page)


def _scatter(axes: Any, mean: np.ndarray, deviation: np.ndarray, numbers: Sequence[int]) -> None:
    """All experts in grey, the chosen ones in colour."""
    axes.plot(mean, deviation, ".", color=_OTHER, markersize=4)
    axes.plot(mean[numbers], deviation[numbers], "o", color=_CHOSEN, markersize=5)


def _name(
    axes: Any, mean: np.ndarray, deviation: np.ndarray, found: Content, *, place: int, ink: str
) -> None:
    """Number the chosen experts, and mark the frequency of routing at random."""
    numbers = _numbers(found, place)
    labels = [_column(found, number) for number in numbers]
    spots = np.stack([mean[numbers], deviation[numbers]], axis=1) * _points_per_unit(found)
    for number, label, offset in zip(numbers, labels, place_labels(spots, labels), strict=True):
        axes.annotate(
            label,
            (mean[number], deviation[number]),
            xytext=offset,
            textcoords="offset points",
            fontsize=_LABEL,
            color=ink,
        )
    axes.axvline(100 * found["chance_frequency"], color=ink, linewidth=0.7, linestyle=":")


def _points_per_unit(found: Content) -> np.ndarray:
    """About how many points one point of A, and of C, is long in a panel."""
    use = 100 * np.array(found["frequency"])
    mean = use.mean(axis=0)
    deviation = np.abs(use - mean).mean(axis=0)
    return np.array([140 / max(np.ptp(mean), 1e-9), 120 / max(np.ptp(deviation), 1e-9)])


def place_labels(
    spots: Float[np.ndarray, "label 2"], labels: Sequence[str]
) -> list[tuple[float, float]]:
    """Offsets, in points, at which labels neither lie on one another nor on a marker.

    Args:
        spots: where the markers are, in points.
        labels: their texts, placed in this order at the first offset that is free; at the last
            one where none is.
    """
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in spots.tolist()]
    found = []
    for (x, y), label in zip(spots.tolist(), labels, strict=True):
        width = 0.62 * _LABEL * len(label)
        sides = [(side, up) for up in (3.0, -9.0, 11.0, -17.0) for side in (4.0, -4.0 - width)]
        boxes = [(x + dx, y + dy, x + dx + width, y + dy + _LABEL) for dx, dy in sides]
        free = [not any(_overlap(box, other) for other in taken) for box in boxes]
        chosen = free.index(True) if True in free else -1
        taken.append(boxes[chosen])
        found.append(sides[chosen])
    return found


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
