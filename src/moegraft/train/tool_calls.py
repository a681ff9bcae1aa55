"""Tool calls: whether a response makes the right call, or one that fits the tools' schemas.

A gold answer is a JSON object with one or both of

* `call`: the call to make, `{"name": ..., "arguments": {...}}`; null if none may be made;
* `tools`: by name, the JSON schema of the arguments that a call must fit.

The call is the JSON object with a `name` and `arguments` in the response (special tokens around
it do not matter); there must be exactly one.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class WantedCall(NamedTuple):
    """A gold answer."""

    has_call: bool
    call: dict[str, Any] | None
    tools: dict[str, dict[str, Any]] | None


def check_call(response: str, gold: str) -> bool:
    """Whether the calls in `response` are what `gold` wants.

    Raises:
        ValueError: `gold` is not as the module says.
    """
    wanted = parse_wanted_call(gold)
    calls = [*find_calls(response)]
    if wanted.has_call and wanted.call is None:
        return not calls
    if len(calls) != 1:
        return False
    (call,) = calls
    if wanted.has_call and not _same(call, wanted.call):
        return False
    if wanted.tools is None:
        return True
    schema = wanted.tools.get(call["name"])
    return schema is not None and fits(call["arguments"], schema)


def find_calls(response: str) -> Iterator[dict[str, Any]]:
    """The calls in `response`: objects with a text `name` and an object `arguments`.

    Arguments may also be text that holds the JSON object.
    """
    decoder = json.JSONDecoder()
    start = response.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(response, start)
        except ValueError:
            end = start + 1
        else:
            call = _call(found)
            if call is not None:
                yield call
        start = response.find("{", end)


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether `value` is valid under `schema`, for the keywords that `check_schema` admits."""
    options = [schema["const"]] if "const" in schema else schema.get("enum")
    listed = options is None or any(_same(value, one) for one in options)
    if not (listed and _has_type(value, schema.get("type"))):
        return False
    if isinstance(value, dict):
        return _fits_object(value, schema)
    if isinstance(value, list):
        return all(fits(item, schema.get("items", {})) for item in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
    return True


_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "null": type(None),
}
_KEYWORDS = {
    *("type", "enum", "const", "properties", "required", "additionalProperties", "items"),
    *("minimum", "maximum", "title", "description", "default"),
}


def check_schema(schema: Any) -> None:
    """Raise ValueError for a schema with keywords or types that `fits` would not check."""
    if not isinstance(schema, dict):
        raise ValueError(f"a schema is a JSON object, got {schema!r:.60}")
    unknown = set(schema) - _KEYWORDS
    if unknown:
        raise ValueError(f"schema keyword {min(unknown)!r} is not supported")
    kinds = schema.get("type", [])
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind not in _TYPES:
            raise ValueError(f"schema type {kind!r}: expected one of {', '.join(_TYPES)}")
    for inner in schema.get("properties", {}).values():
        check_schema(inner)
    for key in ("items", "additionalProperties"):
        if not isinstance(schema.get(key, True), bool):
            check_schema(schema[key])


def parse_wanted_call(gold: str) -> WantedCall:
    """Read a gold answer. Raises ValueError when it is not as the module says."""
    try:
        content = json.loads(gold)
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from None
    if not isinstance(content, dict) or not content or set(content) - {"call", "tools"}:
        raise ValueError("expected a JSON object with `call`, `tools` or both")
    call, tools = content.get("call"), content.get("tools")
    if call is not None and _call(call) is None:
        raise ValueError("`call` needs a text `name` and an object `arguments`")
    if "tools" in content:
        if not isinstance(tools, dict):
            raise ValueError("`tools` is an object of schemas by name")
        for schema in tools.values():
            check_schema(schema)
    return WantedCall("call" in content, None if call is None else _call(call), tools)


def _call(found: Any) -> dict[str, Any] | None:
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    if not isinstance(arguments, dict):
        return None
    return {"name": found["name"], "arguments": arguments}


def _fits_object(value: dict[str, Any], schema: Mapping[str, Any]) -> bool:
    if any(name not in value for name in schema.get("required", ())):
        return False
    properties = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    for name, inner in value.items():
        allowed = properties.get(name, others)
        if allowed is False or (allowed is not True and not fits(inner, allowed)):
            return False
    return True


def _has_type(value: Any, kinds: Any) -> bool:
    if kinds is None:
        return True
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        is_kind = isinstance(value, _TYPES[kind]) or (
            kind == "integer" and isinstance(value, float) and value.is_integer()
        )
        if is_kind and (kind == "boolean" or not isinstance(value, bool)):
            return True
    return False


def _same(a: Any, b: Any) -> bool:
    """Equality of JSON values: 2 equals 2.0, but true does not equal 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a == b
