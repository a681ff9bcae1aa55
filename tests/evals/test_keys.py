"""What results are keyed by."""

import json

import pytest

from moegraft.errors import RunError
from moegraft.evals.keys import cell_key, check_row, remember_ingredients, row_key, tokenizer_hash

INGREDIENTS = {"dtype": "float32", "engine": {"torch": "2.13", "lm_eval": "0.4"}, "device": "cpu"}


def test_a_key_depends_on_content_and_not_on_order():
    turned = dict(reversed(INGREDIENTS.items()))
    assert cell_key(INGREDIENTS) == cell_key(turned)
    assert len(cell_key(INGREDIENTS)) == 32
    for name in INGREDIENTS:
        assert cell_key(INGREDIENTS | {name: "other"}) != cell_key(INGREDIENTS)


def test_a_row_key_depends_on_cell_and_prompt():
    keys = {row_key(cell, prompt) for cell in ("a" * 32, "b" * 32) for prompt in ("c", "d")}
    assert len(keys) == 4


def test_the_same_ingredients_may_be_remembered_again(tmp_path):
    for _ in range(2):
        remember_ingredients(tmp_path, "host", "arc/5-shot", INGREDIENTS)
    kept = tmp_path / "state" / "keys" / "host" / "arc" / "5-shot.json"
    assert json.loads(kept.read_text()) == INGREDIENTS


def test_changed_ingredients_are_named(tmp_path):
    remember_ingredients(tmp_path, "host", "c", INGREDIENTS)
    changed = INGREDIENTS | {"engine": {"torch": "2.14", "lm_eval": "0.4"}}
    with pytest.raises(
        RunError, match=r'host, c: .* engine\.torch was "2\.13", now "2\.14"\. Restore them'
    ):
        remember_ingredients(tmp_path, "host", "c", changed)


def test_many_changes_are_counted(tmp_path):
    remember_ingredients(tmp_path, "host", "c", {str(i): i for i in range(9)})
    with pytest.raises(RunError, match="and 6 more"):
        remember_ingredients(tmp_path, "host", "c", {str(i): i + 1 for i in range(9)})


def test_a_damaged_record_is_an_error(tmp_path):
    remember_ingredients(tmp_path, "host", "c", INGREDIENTS)
    (tmp_path / "state" / "keys" / "host" / "c.json").write_text("{")
    with pytest.raises(RunError, match=r"c\.json: damaged"):
        remember_ingredients(tmp_path, "host", "c", INGREDIENTS)


@pytest.mark.parametrize(("stored", "message"), [("p", "other settings"), ("q", "another prompt")])
def test_a_row_of_another_cell_or_prompt_is_refused(stored, message):
    row = {"item": "i", "prompt": stored, "key": row_key("other", stored)}
    with pytest.raises(RunError, match=message):
        check_row(row, "cell", "p", "file")
    check_row(row | {"key": row_key("cell", "p")}, "cell", "p", "file")


def test_a_tokenizer_hash_covers_names_and_bytes(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"1")
    b.write_bytes(b"1")
    assert tokenizer_hash([a]) != tokenizer_hash([b])
    before = tokenizer_hash([a])
    a.write_bytes(b"2")
    assert tokenizer_hash([a]) != before
