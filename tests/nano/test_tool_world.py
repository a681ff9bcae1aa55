import json
from random import Random

import pytest

from moegraft.nano import tool_world
from moegraft.nano.tool_world import CALL, END_CALL, NO_TOOL

ITEM = {
    "tools": ["alarm", "meet"],
    "request": "Wake me at 5 on Monday.",
    "call": {"name": "alarm", "arguments": {"hour": 5, "day": "Monday"}},
}


def call(text: str) -> str:
    return f"{CALL}{text}{END_CALL}"


def test_a_response_is_right_and_the_order_of_arguments_does_not_matter():
    rng = Random(0)
    for _ in range(300):
        item = tool_world.draw(rng)
        assert tool_world.check(item, tool_world.response(item))
    swapped = {"arguments": {"day": "Monday", "hour": 5}, "name": "alarm"}
    assert tool_world.check(ITEM, call(json.dumps(swapped)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        NO_TOOL,
        json.dumps(ITEM["call"]),
        f"{CALL}{json.dumps(ITEM['call'])}{CALL}",
        call("{alarm"),
        call("[1]"),
        call('{"name": "alarm"}'),
        call('{"name": "clock", "arguments": {"hour": 5, "day": "Monday"}}'),
        call('{"name": "alarm", "arguments": {"hour": "5", "day": "Monday"}}'),
        call('{"name": "alarm", "arguments": {"hour": 5.0, "day": "Monday"}}'),
        call('{"name": "alarm", "arguments": {"hour": 5}}'),
        call('{"name": "alarm", "arguments": {"hour": 5, "day": "Monday", "city": "Rome"}}'),
        call('{"name": "alarm", "arguments": {"hour": 6, "day": "Monday"}}'),
        call('{"name": "alarm", "arguments": [5, "Monday"]}'),
    ],
)
def test_anything_else_is_wrong(text):
    assert not tool_world.check(ITEM, text)


def test_where_no_tool_fits_a_call_is_wrong():
    item = ITEM | {"tools": ["order"], "call": None}
    assert tool_world.check(item, NO_TOOL)
    assert not tool_world.check(item, call(json.dumps(ITEM["call"])))


def test_a_tool_is_offered_exactly_where_it_is_to_be_called():
    rng = Random(1)
    items = [tool_world.draw(rng) for _ in range(400)]
    called = [item for item in items if item["call"]]
    assert 300 < len(called) < 370
    assert all(item["call"]["name"] in item["tools"] for item in called)
    assert {item["call"]["name"] for item in called} == set(tool_world.TOOLS)


def test_arguments_satisfy_the_schema():
    rng = Random(2)
    kinds = {"integer": int, "string": str}
    for item in (tool_world.draw(rng) for _ in range(200)):
        if item["call"]:
            schema = tool_world.schema(item["call"]["name"])
            assert schema["required"] == [*item["call"]["arguments"]]
            for name, value in item["call"]["arguments"].items():
                assert type(value) is kinds[schema["properties"][name]["type"]]
