"""How many directions of each axis a decomposition keeps: numbers, fractions or energy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moegraft.errors import RecipeError

Rank = int | float
"""A number of directions, or a fraction of them in (0, 1)."""
Triple = tuple[Rank, Rank, Rank]


@dataclass(frozen=True, slots=True)
class Ranks:
    """What is kept of an expert's neurons, of the residual stream, and across experts.

    Either a triple of ranks, or a share of energy that all three axes together keep at least.
    """

    in_out: Triple | None = None
    """Of gate and up: neurons (ffn), hidden, experts."""
    down: Triple | None = None
    """Of down: hidden, neurons (ffn), experts."""
    energy: float | None = None

    def resolve(
        self, matrix: str, shape: tuple[int, int, int], where: str
    ) -> tuple[int, int, int] | None:
        """Whole ranks for a stack of `shape`; None where the energy decides.

        Raises:
            RecipeError: a rank is larger than its axis.
        """
        triple = self.down if matrix == "down" else self.in_out
        if triple is None:
            return None
        found = []
        for rank, size in zip(triple, shape, strict=True):
            number = rank if isinstance(rank, int) else math.ceil(rank * size)
            if number > size:
                raise RecipeError(
                    f"--ranks: rank {number} is larger than {where} {matrix}, whose axis has "
                    f"{size} (shape {' x '.join(map(str, shape))})"
                )
            found.append(number)
        return found[0], found[1], found[2]


_ALL = 1 - 1e-12  # a fraction, so that it fits every size

HALF = Ranks(in_out=(0.5, 0.5, 0.5), down=(0.5, 0.5, 0.5))
"""Half of every axis."""
PUBLISHED = Ranks(in_out=(0.5, 0.5, 0.5), down=(0.25, _ALL, 0.5))
"""The authors' [512, 1024, 2] of gate, up and down alike for 4 experts of OLMoE-1B-7B, as shares.

For `down`, stored as 2048 x 1024, the same three numbers are a quarter, all and half.
"""
FULL = Ranks(in_out=(_ALL, _ALL, _ALL), down=(_ALL, _ALL, _ALL))
"""Everything: the averaged expert is then the plain mean."""
PRESETS = {"half": HALF, "published": PUBLISHED, "full": FULL}


def parse_ranks(text: str) -> Ranks:
    """`half`, `published`, `full`, `energy=0.9`, or neurons,hidden,experts as in 512,1024,2.

    The three numbers name axes, not positions: `down` has neurons and hidden the other way round.

    Raises:
        RecipeError: anything else.
    """
    if text in PRESETS:
        return PRESETS[text]
    name, equals, value = text.partition("=")
    try:
        if equals and name == "energy":
            return _energy(float(value), text)
        neurons, hidden, experts = (_rank(part, text) for part in text.split(","))
    except ValueError as error:
        if isinstance(error, RecipeError):
            raise
        raise _refusal(text) from None
    return Ranks((neurons, hidden, experts), (hidden, neurons, experts))


def _energy(share: float, text: str) -> Ranks:
    if not 0 < share <= 1:
        raise _refusal(text)
    return Ranks(energy=share)


def _rank(text: str, whole: str) -> Rank:
    text = text.strip()
    rank = int(text) if text.isdecimal() else float(text)
    if isinstance(rank, int) and rank >= 1:
        return rank
    if isinstance(rank, float) and 0 < rank <= 1:
        return min(rank, _ALL)
    raise _refusal(whole)


def _refusal(text: str) -> RecipeError:
    return RecipeError(
        f"--ranks {text}: expected {', '.join(PRESETS)}, energy=SHARE, or three ranks "
        "NEURONS,HIDDEN,EXPERTS, each a number or a fraction such as 0.5"
    )


def energy_rank(spectrum: Sequence[float], allowed: float) -> int:
    """The fewest leading values of a descending `spectrum` whose rest adds up to `allowed`."""
    left = 0.0
    for rank in range(len(spectrum), 0, -1):
        left += spectrum[rank - 1]
        if left > allowed:
            return rank
    return 1
