"""What an attribution found, in words, as a table, and as a map of layers and units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from moegraft.report.words import p_value, points

CELL = 22
_LEFT, _TOP, _GAP = 66, 58, 2
GAIN, LOSS = "#0072B2", "#D55E00"
_STYLE = (
    "text{font:11px sans-serif;fill:#1f2328}.s{stroke:#1f2328}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{stroke:#e6edf3}}"
)

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BlameReport:
    """The content of `blame.json`, to be told."""

    content: Mapping[str, Any]

    def sentences(self) -> list[str]:
        """The verdict: what was measured, what carries it, and what other items confirm."""
        recipe, found = self.content["recipe"], self.content["confirmed"]
        measured, together = self.content["measured"], found["together"]
        confirmed = sum(unit["confirmed"] for unit in found["units"])
        said = [
            f"{self.content['condition']}: from {recipe['host']} to {recipe['donor']}, the gold "
            f"answer's log-probability changes by {nats(measured['difference'])} nats per item "
            f"({len(self.content['items']['ranking'])} ranking items).",
            f"On {found['num_items']} other items, {confirmed} of the {len(found['units'])} units "
            f"ranked first raise it when swapped in alone (Holm, {1 - found['level']:.2g}).",
            f"All {len(found['units'])} together change it by {effect(together)}{self._kept()}.",
            self._score_sentence(),
        ]
        attributed = self.content["attributed"]
        if attributed:
            said.insert(
                1,
                f"The attributions of all weights add up to {nats(attributed['total'])}: they miss "
                f"the measured difference by {nats(attributed['completeness_error'])} (steps "
                "where tokens change experts, and the few points of the path).",
            )
        return said

    def _kept(self) -> str:
        share = self.content["confirmed"]["share_kept"]
        if share is None:
            return "; the donor is not shown to be better there, so there is no gain to keep"
        low, high = (points(x) for x in share["interval"])
        return f", {points(share['value'])}% of the donor's gain [{low}, {high}]"

    def _score_sentence(self) -> str:
        scores = self.content["confirmed"]["scores"]
        together, donor = scores["together"], scores["donor"]
        low, high = (points(x, sign=True) for x in together["interval"])
        return (
            f"Score ({scores['metric']}): host {points(scores['host'])}, with these units "
            f"{points(together['mean'])}, donor {points(donor['mean'])}; units minus host "
            f"{points(together['effect'], sign=True)} [{low}, {high}], {p_value(together['p'])}."
        )

    def rows(self) -> list[tuple[str, ...]]:
        """The top units: name, attribution, confirmed effect with interval, adjusted p."""
        top = {name(entry): entry["value"] for entry in self.content["top"]}
        return [
            (
                name(unit),
                nats(top[name(unit)]),
                effect(unit),
                p_value(unit["p_holm"]),
                "yes" if unit["confirmed"] else "no",
            )
            for unit in self.content["confirmed"]["units"]
        ]


HEADER = ("unit", "attribution", "effect of swapping it in [95%]", "p (Holm)", "confirmed")


def name(unit: Entry) -> str:
    """`experts[3] of layer 7`, `attention of layer 2`, `embedding`."""
    expert = "" if unit["expert"] is None else f"[{unit['expert']}]"
    layer = "" if unit["layer"] is None else f" of layer {unit['layer']}"
    return f"{unit['component']}{expert}{layer}"


def nats(value: float) -> str:
    """A signed number with three significant digits."""
    return f"{value:+.3g}"


def effect(test: Entry) -> str:
    """A difference with its interval."""
    low, high = test["interval"]
    return f"{nats(test['effect'])} [{nats(low)}, {nats(high)}]"


def blame_markdown(report: BlameReport) -> str:
    """The whole finding as Markdown; the map stands beside it as `blame.svg`."""
    recipe = report.content["recipe"]
    table = [HEADER, ("---", *["---:"] * 3, "---"), *report.rows()]
    parts = [
        f"# What carries {report.content['condition']}",
        f"Host `{recipe['host']}`, donor `{recipe['donor']}`; {_method(recipe)}; nats per item.",
        "\n".join(f"- {sentence}" for sentence in report.sentences()),
        *[f"Note: {note}." for note in report.content["notes"]],
        "![map](blame.svg)",
        "\n".join(f"| {' | '.join(row)} |" for row in table),
        "The ranking and the confirmation use different items. Only the score may back a claim "
        "that a composition is better; the log-probability says where to look.",
        "```\nmoegraft transfer recipe.yaml --out DIR\n```",
    ]
    return "\n\n".join(parts) + "\n"


def blame_svg(report: BlameReport) -> str:
    """A map of layers (rows) and experts or components (columns), as a self-contained SVG.

    Blue raises the gold answer, orange lowers it, stronger for more. A thin frame marks the top
    units, a thick one those that other items confirm. It follows the page's light or dark scheme.
    """
    units: Sequence[Entry] = report.content["units"]
    columns = list(dict.fromkeys(_column(unit) for unit in units))
    layers = sorted({unit["layer"] for unit in units}, key=lambda i: -1 if i is None else i)
    most = max((abs(unit["value"]) for unit in units), default=0.0) or 1.0
    tested = {name(unit): unit["confirmed"] for unit in report.content["confirmed"]["units"]}
    wide = max(map(len, columns)) > 3  # names of components stand upright
    top = _TOP + (70 if wide else 0)
    parts = []
    for unit in units:
        x = _LEFT + columns.index(_column(unit)) * CELL
        y = top + layers.index(unit["layer"]) * CELL
        parts.append(_square(unit, x, y, most, tested.get(name(unit))))
    for i, column in enumerate(columns):
        x, y = _LEFT + i * CELL + CELL / 2 - _GAP / 2, top - 6
        turned = f'transform="rotate(-90 {x + 4} {y})" x="{x + 4}"' if wide else f'x="{x}"'
        anchor = "start" if wide else "middle"
        parts.append(f'<text {turned} y="{y}" text-anchor="{anchor}">{escape(column)}</text>')
    for i, layer in enumerate(layers):
        text, y = "outside" if layer is None else f"layer {layer}", top + i * CELL + CELL * 0.66
        parts.append(f'<text x="{_LEFT - 8}" y="{y:.1f}" text-anchor="end">{text}</text>')
    title = f"{report.content['condition']}: up to {most:.3g} nats per item"
    parts.append(f'<text x="8" y="18">{escape(title)}</text>')
    parts.append(_legend())
    width = max(_LEFT + len(columns) * CELL + 12, 400)
    height = top + len(layers) * CELL + 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(title)}">'
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _square(unit: Entry, x: int, y: int, most: float, confirmed: bool | None) -> str:
    colour = GAIN if unit["value"] > 0 else LOSS
    frame = "" if confirmed is None else f' class="s" stroke-width="{2.5 if confirmed else 1}"'
    size = CELL - _GAP
    return (
        f'<rect x="{x}" y="{y}" width="{size}" height="{size}" rx="2" fill="{colour}" '
        f'fill-opacity="{0.04 + 0.96 * abs(unit["value"]) / most:.3f}"{frame}>'
        f"<title>{escape(name(unit))}: {nats(unit['value'])}</title></rect>"
    )


def _legend() -> str:
    marks = (
        (GAIN, 0.9, "", "raises the gold answer"),
        (LOSS, 0.9, "", "lowers it"),
        ("none", 1, ' class="s" stroke-width="1"', "top"),
        ("none", 1, ' class="s" stroke-width="2.5"', "confirmed"),
    )
    parts, x = [], 8
    for colour, opacity, frame, text in marks:
        parts.append(
            f'<rect x="{x}" y="28" width="10" height="10" fill="{colour}" '
            f'fill-opacity="{opacity}"{frame}/><text x="{x + 15}" y="37">{text}</text>'
        )
        x += 30 + 6 * len(text)
    return "".join(parts)


def _column(unit: Entry) -> str:
    return unit["component"] if unit["expert"] is None else str(unit["expert"])


def _method(recipe: Mapping[str, Any]) -> str:
    if recipe["method"] == "integrated":
        return f"integrated gradients at {recipe['path_points']} points ({recipe['rule']})"
    return {"gradient": "first-order gradient at the host", "swap": "every unit swapped in"}[
        recipe["method"]
    ]
