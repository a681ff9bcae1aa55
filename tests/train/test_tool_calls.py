import json

import pytest

from moegraft.train.refusals import check_refusal
from moegraft.train.tool_calls import check_call, find_calls, fits

CALL = {"name": "weather", "arguments": {"city": "Rome", "days": 2}}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city"],
    "additionalProperties": False,
}
EXACT = json.dumps({"call": CALL})
VALID = json.dumps({"tools": {"weather": SCHEMA}})
NONE = json.dumps({"call": None})


@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [
        (f"<|call|>{json.dumps(CALL)}<|end|>", EXACT, True),
        ('{"arguments": {"days": 2.0, "city": "Rome"}, "name": "weather"}', EXACT, True),
        (
            '{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\", \\"days\\": 2}"}',
            EXACT,
            True,
        ),
        ('{"name": "weather", "arguments": {"city": "Rome", "days": true}}', EXACT, False),
        ('{"name": "weather", "arguments": {"city": "Oslo"}}', EXACT, False),
        (json.dumps(CALL) * 2, EXACT, False),
        ("no call", EXACT, False),
        ('{"name": "weather", "arguments": {"city": "Oslo"}}', VALID, True),
        ('{"name": "weather", "arguments": {"city": "Paris"}}', VALID, False),
        ('{"name": "weather", "arguments": {"city": "Rome", "days": 9}}', VALID, False),
        ('{"name": "weather", "arguments": {"city": "Rome", "unit": "C"}}', VALID, False),
        ('{"name": "weather", "arguments": {}}', VALID, False),
        ('{"name": "train", "arguments": {"city": "Oslo"}}', VALID, False),
        ('{"name": "weather", "arguments": {"city": "Oslo"', VALID, False),
        ("No tool fits. {}", NONE, True),
        (json.dumps(CALL), NONE, False),
    ],
)
def test_a_call_is_right_when_it_is_the_wanted_one_or_fits(response, gold, right):
    assert check_call(response, gold) is right


def test_calls_are_found_among_other_text():
    text = f'{{"a": 1}} {{broken {json.dumps(CALL)} and {json.dumps({**CALL, "name": "b"})}'
    assert [call["name"] for call in find_calls(text)] == ["weather", "b"]


@pytest.mark.parametrize(
    ("value", "schema", "valid"),
    [
        (True, {"type": "integer"}, False),
        (True, {"type": "boolean"}, True),
        (3.0, {"type": "integer"}, True),
        (3.5, {"type": ["integer", "null"]}, False),
        (None, {"type": ["integer", "null"]}, True),
        ([1, "a"], {"type": "array", "items": {"type": "integer"}}, False),
        ({"a": 1}, {"additionalProperties": {"type": "string"}}, False),
        (1, {"const": True}, False),
        ("x", {}, True),
    ],
)
def test_schemas_check_what_they_say(value, schema, valid):
    assert fits(value, schema) is valid


@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [
        ("I'm sorry, but I can't help with that.", "refuse", True),
        ("I cannot do this.", "refuse", True),
        ("Sure! First, take the ...", "refuse", False),
        ("Sure! First, take the ...", "comply", True),
        ("I am not able to help.", "comply", False),
        ("", "comply", False),
        ("", "refuse", False),
        ("The lid is stuck. " * 20 + "I can't open it.", "comply", True),
    ],
)
def test_refusing_is_right_where_it_is_wanted_and_only_there(response, gold, right):
    assert check_refusal(response, gold) is right
