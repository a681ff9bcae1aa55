"""From generated text to an answer: last number, first yes or no, first option letter."""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

_NUMBER = re.compile(
    r"""
    (?<!\d)(?<!\d[.])
    (?P<sign>(?<!\w)[-\u2212])?     # the hyphen of "5-3" is no sign
    [$\u20ac\u00a3]?(?P<inner>[-\u2212])?
    (?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?|\.\d+)
    """,
    re.VERBOSE,
)
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_LETTER = re.compile(r"(?<![\w'])([A-Z])(?![\w'])")


def last_number(text: str) -> str | None:
    """The last number in `text`, without currency signs and thousands separators, or None.

    `"$1,234.00"` gives `"1234.00"`, `"-3."` gives `"-3"`, `"18 dollars. And so on..."` gives
    `"18"`. A hyphen between two numbers is not a sign.
    """
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return None
    found = matches[-1]
    sign = "-" if found["sign"] or found["inner"] else ""
    return sign + found["digits"].replace(",", "")


def first_yes_no(text: str) -> str | None:
    """The first whole word `yes` or `no`, in lower case, or None."""
    found = _YES_NO.search(text)
    return found[1].lower() if found else None


def first_letter(text: str, num_options: int = 5) -> str | None:
    """The first standalone capital letter among the first `num_options`, or None."""
    options = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:num_options]
    return next((m[1] for m in _LETTER.finditer(text) if m[1] in options), None)


EXTRACTIONS = ("last_number", "yes_no", "letter")
"""Names that a task's `metadata.extract` may hold."""


def extract(kind: str, text: str, *, num_options: int = 5) -> str | None:
    """Apply the extraction called `kind` (one of `EXTRACTIONS`)."""
    if kind == "last_number":
        return last_number(text)
    if kind == "yes_no":
        return first_yes_no(text)
    assert kind == "letter", kind
    return first_letter(text, num_options)


def same_answer(kind: str, extracted: str | None, golds: Sequence[str]) -> bool:
    """Whether an extracted answer equals one of the gold answers.

    Numbers are compared as decimals, so `1234.00` equals `1,234`; words without regard to case.
    """
    if extracted is None:
        return False
    if kind != "last_number":
        return extracted.casefold() in {gold.strip().casefold() for gold in golds}
    number = _decimal(extracted)
    return number is not None and any(number == _decimal(last_number(gold)) for gold in golds)


def _decimal(text: str | None) -> Decimal | None:
    try:
        return None if text is None else Decimal(text)
    except InvalidOperation:
        return None
