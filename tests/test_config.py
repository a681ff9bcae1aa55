from dataclasses import dataclass

import pytest

from moegraft.config import STRICT, dump_recipe, fingerprint, load_recipe, parse_recipe
from moegraft.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Inner:
    __pydantic_config__ = STRICT
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Outer:
    __pydantic_config__ = STRICT
    name: str
    parts: tuple[Inner, ...] = ()


def test_a_recipe_survives_the_way_to_yaml_and_back(tmp_path):
    recipe = Outer("x", (Inner(0.5), Inner()))
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path, Outer) == recipe


def test_a_misspelt_key_is_named_with_file_and_dotted_path(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nparts:\n- {wieght: 2}\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: parts\.0\.wieght: unknown key"):
        load_recipe(path, Outer)


def test_a_wrong_type_says_what_was_got():
    with pytest.raises(RecipeError, match=r"flags: parts\.0\.weight: .*number.*got 'much'"):
        parse_recipe({"name": "x", "parts": [{"weight": "much"}]}, Outer, where="flags")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "expected a mapping"),
        ("", "expected a mapping of recipe keys, got nothing"),
        ("a: [1\n", "not valid YAML"),
        ("name: x\nname: y\n", "key 'name' stands twice .* line 2"),
        ("name: x\nparts:\n- {weight: 1, weight: 2}\n", "key 'weight' stands twice"),
        (None, "no such recipe"),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path, Outer)
    assert "\n" not in str(caught.value)


def test_a_recipe_from_windows_reads_as_any_other(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\r\nparts:\r\n- &half {weight: 0.5}\r\n- *half\r\n")
    assert load_recipe(path, Outer) == Outer("x", (Inner(0.5), Inner(0.5)))


def test_the_fingerprint_sees_content_and_nothing_else():
    assert fingerprint(Outer("x")) == fingerprint(parse_recipe({"name": "x"}, Outer, where="t"))
    assert fingerprint(Outer("x")) != fingerprint(Outer("y"))
