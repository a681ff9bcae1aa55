"""Figure of a comparison of starts: losses against tokens, and their distance from random's."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moegraft.report.figures import drawing, dress, render, tones

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a9199", "#B8A000")
_TITLES = {"ffn": "FFNs only, as published", "trunk": "trunk inherited"}
_BASELINE = "random"
Arms = Mapping[str, Mapping[str, Any]]


def write_start_figures(summary: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Draw `starts`: losses by arm and protocol, and below them their distance from random's.

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
    with drawing(0.8 + 3.6 * len(protocols), 6.0) as figure:
        grid = figure.subplots(2, len(protocols), squeeze=False, sharex="col")
        for column, (protocol, found) in enumerate(protocols.items()):
            losses, differences = grid[:, column]
            scale, unit = _scale(float(found["arms"][_BASELINE]["tokens"][-1]))
            _draw_losses(losses, found["arms"], scale, ink)
            _draw_differences(differences, found["arms"], scale, ink)
            losses.set_title(_TITLES.get(protocol, protocol), color=ink, fontsize=9, loc="left")
            differences.set_xlabel(f"tokens ({unit})", color=ink)
            dress(losses, ink)
            dress(differences, ink)
        grid[0, 0].set_ylabel("validation loss (nats per token)")
        grid[1, 0].set_ylabel("difference from random")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=5, frameon=False, labelcolor=ink
        )
        return render(figure, suffix, page)


def _scale(num_tokens: float) -> tuple[float, str]:
    return (1e6, "millions") if num_tokens >= 1e6 else (1e3, "thousands")


def _draw_losses(axes: Any, arms: Arms, scale: float, ink: str) -> None:
    """Mean over seeds and standard deviation."""
    for name, colour in _coloured(arms, ink):
        tokens = np.array(arms[name]["tokens"]) / scale
        mean, deviation = np.array(arms[name]["mean"]), np.array(arms[name]["deviation"])
        style = "--" if name == _BASELINE else "-"
        axes.plot(tokens, mean, style, color=colour, linewidth=1.4, label=name)
        band = mean - deviation, mean + deviation
        axes.fill_between(tokens, *band, color=colour, alpha=0.15, lw=0)


def _draw_differences(axes: Any, arms: Arms, scale: float, ink: str) -> None:
    """Of the means, from the first validation after the start on, and the last one's interval."""
    random = np.array(arms[_BASELINE]["mean"])[1:]
    axes.axhline(0, color=ink, linestyle="--", linewidth=1.0)
    for place, (name, colour) in enumerate(_coloured(arms, ink)):
        test = arms[name]["against_baseline"]
        if test is None:
            continue
        tokens = np.array(arms[name]["tokens"])[1:] / scale
        axes.plot(tokens, np.array(arms[name]["mean"])[1:] - random, color=colour, linewidth=1.4)
        beside = tokens[-1] * (1.02 + 0.015 * place)  # side by side, not on one another
        axes.plot([beside, beside], test["interval"], color=colour, linewidth=1.4)
        axes.plot([beside], [test["difference"]], "o", color=colour, markersize=3)


def _coloured(arms: Arms, ink: str) -> Iterator[tuple[str, str]]:
    for place, name in enumerate(arms):
        yield name, ink if name == _BASELINE else _COLOURS[place % len(_COLOURS)]
