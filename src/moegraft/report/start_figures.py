"""Figure of a comparison of starts: validation loss against tokens, by arm and protocol."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moegraft.report.figures import drawing, dress, render, tones

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a9199", "#B8A000")
_TITLES = {"ffn": "FFNs only, as published", "trunk": "trunk inherited"}
_UNIT = 1e6


def write_start_figures(summary: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Draw `starts`: mean and standard deviation over seeds.

    Args:
        summary: of `moegraft xpert compare`.
        folder: made when missing.

    Returns:
        Paths by file name: as SVG, as PNG, and as SVG for dark pages.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for file, suffix, dark in (
        ("starts.svg", "svg", False),
        ("starts.png", "png", False),
        ("starts-dark.svg", "svg", True),
    ):
        paths[file] = folder / file
        paths[file].write_bytes(_draw(summary, suffix, dark=dark))
    return paths


def _draw(summary: Mapping[str, Any], suffix: str, *, dark: bool) -> bytes:
    ink, page = tones(dark=dark)
    protocols = summary["protocols"]
    with drawing(0.8 + 3.6 * len(protocols), 3.8) as figure:
        grid = figure.subplots(1, len(protocols), squeeze=False)[0]
        for axes, (protocol, found) in zip(grid, protocols.items(), strict=True):
            for place, (name, arm) in enumerate(found["arms"].items()):
                colour = ink if name == "random" else _COLOURS[place % len(_COLOURS)]
                _curve(axes, name, arm, colour)
            axes.set_title(_TITLES.get(protocol, protocol), color=ink, fontsize=9, loc="left")
            axes.set_xlabel("tokens (millions)", color=ink)
            dress(axes, ink)
        grid[0].set_ylabel("validation loss (nats per token)")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=4, frameon=False, labelcolor=ink
        )
        return render(figure, suffix, page)


def _curve(axes: Any, name: str, arm: Mapping[str, Any], colour: str) -> None:
    tokens = np.array(arm["tokens"]) / _UNIT
    mean, deviation = np.array(arm["mean"]), np.array(arm["deviation"])
    style = "--" if name == "random" else "-"
    axes.plot(tokens, mean, style, color=colour, linewidth=1.4, label=name)
    axes.fill_between(tokens, mean - deviation, mean + deviation, color=colour, alpha=0.15, lw=0)
