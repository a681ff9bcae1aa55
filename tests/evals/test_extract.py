"""Answers out of texts, with the strings on which other harnesses are known to fail."""

import re

import pytest

from moegraft.evals.extract import extract, first_letter, first_yes_no, last_number, same_answer

# What lm-eval's patterns (which our GSM8K task stores beside the score) make of the same strings.
STRICT = r"The answer is (\-?[0-9\.\,]+)."
FLEXIBLE = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It costs 18 dollars. And so on...", "18"),
        ("The total is $1,234.00", "1234.00"),
        ("The answer is -3.", "-3"),
        ("The answer is 18. (checked in 2 ways)", "2"),
        ("5-3", "3"),
        ("x=-3", "-3"),
        ("10 - 3 = 7", "7"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("\u22127 degrees", "-7"),
        ("12,345,678 people", "12345678"),
        ("1,23", "23"),
        ("half is .5", ".5"),
        ("#### 18", "18"),
        ("- 3 apples", "3"),
        ("pi is 3.14.", "3.14"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_last_number(text, expected):
    assert last_number(text) == expected


@pytest.mark.parametrize(
    ("text", "strict", "flexible", "ours"),
    [
        ("The answer is 18 dollars. And so on...", "18", "...", "18"),
        ("The answer is $1,234.00", None, "$1,234.00", "1234.00"),
        ("The answer is -3.", "-3", "-3.", "-3"),
        ("The answer is 18. (checked in 2 ways)", "18", "2", "2"),
    ],
)
def test_three_extractions_differ_as_reported(text, strict, flexible, ours):
    found = re.findall(STRICT, text)
    assert (found[0].rstrip(".") if found else None) == strict
    assert next(part for part in re.findall(FLEXIBLE, text)[-1] if part) == flexible
    assert last_number(text) == ours


@pytest.mark.parametrize(
    ("extracted", "gold", "expected"),
    [
        ("1234.00", "1,234", True),
        ("-3", "-3", True),
        ("3", "-3", False),
        ("0.10", ".1", True),
        (None, "3", False),
    ],
)
def test_numbers_are_compared_as_decimals(extracted, gold, expected):
    assert same_answer("last_number", extracted, [gold]) == expected


def test_words_and_letters_are_compared_without_case():
    assert same_answer("yes_no", "yes", ["Yes"])
    assert not same_answer("letter", "A", ["B"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes, it is.", "yes"),
        ("I know nothing; no.", "no"),
        ("Yesterday", None),
        ("the answer is NO", "no"),
    ],
)
def test_the_first_whole_word_yes_or_no(text, expected):
    assert first_yes_no(text) == expected


@pytest.mark.parametrize(
    ("text", "num_options", "expected"),
    [
        ("The answer is (C).", 4, "C"),
        ("I'm sure: B", 4, "B"),
        ("E", 4, None),
        ("E", 5, "E"),
        ("Because DNA", 4, None),
        ("c", 4, None),
        ("gills, C", 4, "C"),
    ],
)
def test_the_first_standalone_option_letter(text, num_options, expected):
    assert first_letter(text, num_options) == expected
    assert extract("letter", text, num_options=num_options) == expected
