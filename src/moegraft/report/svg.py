"""The few shapes that the page's own figures are made of; colours come from the page's style."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Number = int | float


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps numbers from `low` to `high` onto pixels from `start` to `stop`."""

    low: Number
    high: Number
    start: Number
    stop: Number

    def __call__(self, value: Number) -> float:
        """The pixel of a number."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self, count: int = 7) -> list[float]:
        """About `count` round numbers within the scale."""
        raw = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * part for part in (1, 2, 5, 10) if power * part >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def scale_over(values: Iterable[Number], start: Number, stop: Number) -> Scale:
    """A scale that holds all of `values` with a little room on both sides."""
    values = list(values)
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.01
    return Scale(low - room, high + room, start, stop)


def picture(width: Number, height: Number, title: str, parts: Sequence[str]) -> str:
    """An inline SVG that shrinks with the page; `title` is what a screen reader says."""
    return (
        f'<svg class="own" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>\n'
    )


def line(x1: Number, y1: Number, x2: Number, y2: Number, style: str = "axis") -> str:
    """A straight line."""
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: Number, y: Number, content: str, style: str = "", anchor: str = "start") -> str:
    """One line of text, its baseline at y."""
    named = f' class="{style}"' if style else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def dot(x: Number, y: Number, style: str, radius: Number = 4.5) -> str:
    """A disc; the style says whether it is filled."""
    return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def bar(x1: Number, x2: Number, y: Number, height: Number, style: str) -> str:
    """A bar from x1 to x2, at least one pixel wide, centred on y."""
    left, width = min(x1, x2), max(1.0, abs(x2 - x1))
    return (
        f'<rect class="{style}" x="{left:.1f}" y="{y - height / 2:.1f}" width="{width:.1f}" '
        f'height="{height:g}"/>'
    )


def group(title: str, parts: Iterable[str]) -> str:
    """Shapes with one tooltip."""
    return f"<g><title>{escape(title)}</title>{''.join(parts)}</g>"


def shorten(label: str, length: int = 25) -> str:
    """A label cut to what its column holds."""
    return label if len(label) <= length else f"{label[: length - 1]}…"


def direction(value: Number, interval: Sequence[Number]) -> str:
    """`gain`, `loss`, or `open` where the interval holds 0."""
    low, high = interval
    if low <= 0 <= high:
        return "open"
    return "gain" if value > 0 else "loss"
