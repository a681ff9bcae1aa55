"""Figures of routing: who serves what, where configurations leave their parents, and the 2 x 2."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from moegraft.report.figures import drawing, dress, render, tones

Content = Mapping[str, Any]

# Okabe and Ito's palette.
_COLOURS = {
    "router": "#E69F00",
    "attention": "#0072B2",
    "experts": "#009E73",
    "router+experts": "#CC79A7",
    "router+attention": "#D55E00",
    "attention+experts": "#56B4E9",
    "router+attention+experts": "#999999",
}
_BRIGHTER = {"#0072B2": "#4AA3DF", "#D55E00": "#F07C2A"}
"""For dark pages."""
_MARKERS = {"router": "s", "attention": "o", "experts": "D"}
_PARENT_COLOURS = {"host": "#0072B2", "donor": "#D55E00"}
_PARENT_MARKERS = {"host": "o", "donor": "s"}
_MEASURES = {
    "frequency": ("routing-frequency", "% of tokens"),
    "routing_mass": ("routing-mass", "% of the weight"),
}
"""Name of the figure and unit, by what is drawn."""
_MAX_PANELS = 6
_MAX_LINES = 8


def write_profile_figures(
    profile: Content, folder: Path, *, measure: str = "frequency"
) -> dict[str, Path]:
    """Draw `routing-frequency`: one heat map layer x expert per domain, at most six.

    Args:
        profile: what `RoutingProfile.as_dict` returns.
        folder: made when missing.
        measure: `frequency`, or `routing_mass` for `routing-mass`: where all experts are active,
            only their weights differ.

    Returns:
        Paths by file name: each figure as SVG, as PNG, and as SVG for dark pages.
    """
    panels = dict(zip(profile["domains"], map(np.array, profile[measure]), strict=True))
    chosen = dict(list(panels.items())[:_MAX_PANELS])
    name, unit = _MEASURES[measure]

    def draw(suffix: str, dark: bool) -> bytes:
        return _draw_maps(chosen, profile["layers"], suffix, dark=dark, unit=unit)

    return _write({name: draw}, folder)


def write_diagnosis_figures(diagnosis: Content, folder: Path) -> dict[str, Path]:
    """Draw what `diagnose` found: `routing-frequency`, `routing-agreement`, `coadaptation`.

    Args:
        diagnosis: content of diagnose.json.
        folder: made when missing.

    Returns:
        As `write_profile_figures`.
    """
    host, donor = (
        np.array(diagnosis["routing"][name]["frequency"]).mean(axis=0) for name in ("host", "donor")
    )
    panels = {"host": host, "donor": donor, "donor - host": donor - host}

    def draw_maps(suffix: str, dark: bool) -> bytes:
        return _draw_maps(panels, diagnosis["layers"], suffix, dark=dark, last_is_difference=True)

    def draw_agreement(suffix: str, dark: bool) -> bytes:
        return _draw_agreement(diagnosis, suffix, dark=dark)

    figures: dict[str, Callable[[str, bool], bytes]] = {
        "routing-frequency": draw_maps,
        "routing-agreement": draw_agreement,
    }
    if diagnosis["coadaptation"]:
        figures["coadaptation"] = lambda suffix, dark: _draw_pairings(
            diagnosis["coadaptation"], suffix, dark=dark
        )
    return _write(figures, folder)


def _write(figures: Mapping[str, Callable[[str, bool], bytes]], folder: Path) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, draw in figures.items():
        for file, suffix, dark in (
            (f"{name}.svg", "svg", False),
            (f"{name}.png", "png", False),
            (f"{name}-dark.svg", "svg", True),
        ):
            paths[file] = folder / file
            paths[file].write_bytes(draw(suffix, dark))
    return paths


# --- heat maps --------------------------------------------------------------------------------


def _draw_maps(
    panels: Mapping[str, Float[np.ndarray, "layer expert"]],
    layers: Sequence[int],
    suffix: str,
    *,
    dark: bool,
    last_is_difference: bool = False,
    unit: str = "% of tokens",
) -> bytes:
    ink, page = tones(dark=dark)
    plain = list(panels)[: len(panels) - last_is_difference]
    top = max(float(panels[name].max()) for name in plain)
    num_layers, num_experts = panels[plain[0]].shape
    width = min(14.0, 1.4 + len(panels) * max(1.7, 0.045 * num_experts + 0.8))
    with drawing(width, max(2.0, 1.1 + 0.13 * num_layers)) as figure:
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (name, values) in zip(all_axes, panels.items(), strict=True):
            signed = name not in plain
            far = max(float(np.abs(values).max()), 1e-3)
            mesh = axes.pcolormesh(
                100 * values,
                cmap="PuOr_r" if signed else "viridis",
                vmin=-100 * far if signed else 0,
                vmax=100 * (far if signed else top),
                rasterized=True,
            )
            axes.set_title(name, color=ink, fontsize=9)
            axes.set_xlabel("expert", color=ink)
            _number_cells(axes, layers, num_experts, ink)
            if signed or name == plain[-1]:
                bar = figure.colorbar(mesh, ax=axes, fraction=0.08, pad=0.03)
                bar.set_label("points" if signed else unit, color=ink)
                bar.ax.tick_params(colors=ink, length=0)
                bar.outline.set_visible(False)
        all_axes[0].set_ylabel("layer", color=ink)
        return render(figure, suffix, page)


def _number_cells(axes: Any, layers: Sequence[int], num_experts: int, ink: str) -> None:
    """Label the middle of every few cells; layer 0 on top."""
    for count, names, place in (
        (num_experts, range(num_experts), axes.set_xticks),
        (len(layers), layers, axes.set_yticks),
    ):
        shown = range(0, count, max(1, -(-count // 8)))
        place([spot + 0.5 for spot in shown], [str(names[spot]) for spot in shown])
    axes.set_ylim(len(layers), 0)
    axes.tick_params(colors=ink, length=0)
    axes.spines[:].set_visible(False)


# --- agreement --------------------------------------------------------------------------------


def _draw_agreement(diagnosis: Content, suffix: str, *, dark: bool) -> bytes:
    ink, page = tones(dark=dark)
    names = _lines(diagnosis)
    rows = (
        ("overlap", diagnosis["layers"], "chosen experts in common (%)", 100),
        ("distance", None, "drift of hidden states", 1),
    )
    with drawing(8.2, 5.6) as figure:
        grid = figure.subplots(2, 2, sharex=True, sharey="row")
        for line, (measure, layers, label, scale) in zip(grid, rows, strict=True):
            for axes, parent in zip(line, ("host", "donor"), strict=True):
                other = "donor" if parent == "host" else "host"
                for name in (*names, other):
                    values = _by_layer(diagnosis, name, parent, measure)
                    where = range(len(values)) if layers is None else layers
                    colour = ink if name == other else _COLOURS.get(name, "#F0E442")
                    _draw_line(axes, name, where, scale * values, _shade(colour, dark))
                dress(axes, ink)
            line[0].set_ylabel(label)
        for axes, parent in zip(grid[0], ("host", "donor"), strict=True):
            axes.set_title(f"against the {parent}", color=ink, fontsize=9)
            axes.set_ylim(None, 101)
        for axes in grid[1]:
            axes.set_xlabel("layer", color=ink)
            axes.set_ylim(0, None)
            _whole_ticks(axes, int(axes.get_xlim()[1]) + 1)
        handles, labels = grid[0][0].get_legend_handles_labels()
        labels = ["the other parent" if label in ("host", "donor") else label for label in labels]
        figure.legend(
            handles,
            labels,
            loc="outside upper center",
            ncols=4,
            frameon=False,
            labelcolor=ink,
        )
        return render(figure, suffix, page)


def _lines(diagnosis: Content) -> list[str]:
    """The configurations to draw: those of the sweep, without what only the 2 x 2 needed."""
    own = [
        name
        for name in diagnosis["configurations"]
        if name not in ("host", "donor") and "rest" not in name.split("+")
    ]
    known = [name for name in _COLOURS if name in own]
    return [*known, *(name for name in own if name not in known)][:_MAX_LINES]


def _by_layer(
    diagnosis: Content, name: str, parent: str, measure: str
) -> Float[np.ndarray, "layer"]:
    """A measure averaged over conditions, each with equal weight."""
    return np.array(diagnosis["agreement"][name][parent][measure]).mean(axis=0)


def _draw_line(axes: Any, name: str, where: Sequence[int], values: Any, colour: str) -> None:
    is_parent = name in _PARENT_COLOURS
    axes.plot(
        list(where),
        values,
        color=colour,
        marker=None if is_parent else _MARKERS.get(name, "."),
        linestyle=":" if is_parent else "-" if name in _MARKERS else "--",
        markersize=4.5,
        linewidth=1.4,
        label=name,
    )


def _shade(colour: str, dark: bool) -> str:
    return _BRIGHTER.get(colour, colour) if dark else colour


def _whole_ticks(axes: Any, count: int) -> None:
    axes.set_xticks(range(0, count, max(1, -(-count // 8))))


# --- the 2 x 2 --------------------------------------------------------------------------------


def _draw_pairings(entries: Sequence[Content], suffix: str, *, dark: bool) -> bytes:
    ink, page = tones(dark=dark)
    surroundings = list(dict.fromkeys(entry["others"] for entry in entries))
    conditions = list(dict.fromkeys(entry["condition"] for entry in entries))
    if len(conditions) == 2:  # a single condition equals the mean over all
        conditions = conditions[1:]
    conditions = conditions[:_MAX_PANELS]
    found = {(entry["others"], entry["condition"]): entry for entry in entries}
    width = max(3.6, 0.9 + 1.9 * len(conditions))
    with drawing(width, 0.7 + 2.4 * len(surroundings)) as figure:
        grid = figure.subplots(
            len(surroundings), len(conditions), sharex=True, sharey="row", squeeze=False
        )
        for line, others in zip(grid, surroundings, strict=True):
            for axes, condition in zip(line, conditions, strict=True):
                entry = found[others, condition]
                axes.axhline(0, color=ink, linewidth=0.8)
                for router in ("host", "donor"):
                    _draw_router(axes, entry, router, page, dark=dark)
                axes.set_title(_pairing_title(entry), color=ink, fontsize=8)
                axes.set_xticks([0, 1], ["host's", "donor's"])
                axes.set_xlim(-0.35, 1.35)
                dress(axes, ink)
            line[0].set_ylabel(
                f"all else the {others}'s:\nloss against it (nats per token)", color=ink
            )
        for axes in grid[-1]:
            axes.set_xlabel("experts", color=ink)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=2, frameon=False, labelcolor=ink
        )
        return render(figure, suffix, page)


def _draw_router(axes: Any, entry: Content, router: str, page: str, *, dark: bool) -> None:
    cells = [
        next(c for c in entry["cells"] if (c["router"], c["experts"]) == (router, experts))
        for experts in ("host", "donor")
    ]
    shift = -0.04 if router == "host" else 0.04
    colour, marker = _shade(_PARENT_COLOURS[router], dark), _PARENT_MARKERS[router]
    values = [cell["difference"]["value"] for cell in cells]
    axes.plot([shift, 1 + shift], values, color=colour, linewidth=1.4)
    for place, (cell, value) in enumerate(zip(cells, values, strict=True)):
        low, high = cell["difference"]["interval"]
        axes.errorbar(
            [place + shift],
            [value],
            yerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
            fmt=marker,
            color=colour,
            markerfacecolor=colour if router == cell["experts"] else page,
            markersize=6,
            markeredgewidth=1.4,
            capsize=3,
            label=f"{router}'s router" if place == 0 else None,
        )


def _pairing_title(entry: Content) -> str:
    low, high = entry["mismatch"]["interval"]
    name = "all conditions" if entry["condition"] == "all" else entry["condition"]
    return f"{name}\nmismatch {entry['mismatch']['value']:+z.3f} [{low:z.3f}, {high:z.3f}]"
