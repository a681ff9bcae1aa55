"""The figure of a ledger: what growing domain by domain costs, by branches and by retraining."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moegraft.report.figures import drawing, dress, render, tones

_BRANCHES, _ROUTERS, _RETRAINING = "#0072B2", "#E69F00", "#D55E00"
_BRIGHTER = {_BRANCHES: "#56B4E9", _RETRAINING: "#F07C2A"}
_UNITS = ((1e21, "ZFLOPs"), (1e18, "EFLOPs"), (1e15, "PFLOPs"), (1e12, "TFLOPs"), (1e9, "GFLOPs"))


def write_ledger_figure(ledger: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Draw `cost`: cumulative FLOPs by number of domains, as SVG, as PNG and for dark pages.

    Args:
        ledger: what `bar.ledger.count_costs` returns.
        folder: made when missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for file, suffix, dark in (
        ("cost.svg", "svg", False),
        ("cost.png", "png", False),
        ("cost-dark.svg", "svg", True),
    ):
        paths[file] = folder / file
        paths[file].write_bytes(_draw(ledger["growth"], suffix, dark=dark))
    return paths


def _draw(growth: list[Mapping[str, Any]], suffix: str, *, dark: bool) -> bytes:
    ink, page = tones(dark=dark)
    top = max(max(row["bar"], row["retraining"]) for row in growth)
    scale, unit = next(((s, u) for s, u in _UNITS if top >= s), (1.0, "FLOPs"))
    places = [row["domains"] for row in growth]

    def line(name: str) -> list[float]:
        return [row[name] / scale for row in growth]

    def tone(colour: str) -> str:
        return _BRIGHTER.get(colour, colour) if dark else colour

    with drawing(5.2, 3.2) as figure:
        axes = figure.add_subplot()
        zeros = [0.0] * len(places)
        axes.fill_between(
            places, zeros, line("bar_branches"), color=tone(_BRANCHES), alpha=0.35, linewidth=0
        )
        axes.fill_between(
            places,
            line("bar_branches"),
            line("bar"),
            color=_ROUTERS,
            alpha=0.6,
            linewidth=0,
            label="of it routers",
        )
        axes.plot(places, line("bar"), "o-", color=tone(_BRANCHES), label="BAR, all branches")
        axes.plot(
            places, line("retraining"), "s--", color=tone(_RETRAINING), label="retraining on all"
        )
        axes.set_xticks(places, [f"{row['domains']}: {row['added']}" for row in growth])
        axes.set_xlabel("domains, added one at a time", color=ink)
        axes.set_ylabel(f"spent in all ({unit})")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, labelcolor=ink)
        dress(axes, ink)
        return render(figure, suffix, page)
