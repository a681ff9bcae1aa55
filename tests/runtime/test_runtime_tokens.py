"""Tokenizers compared: names of special ids are one thing, ids of words another."""

import json

import pytest

from moegraft.checkpoint import open_checkpoint
from moegraft.errors import CheckpointError
from moegraft.runtime.tokens import (
    eos_ids,
    id_maps_differ,
    load_tokenizer,
    tokenizer_differences,
)

NAMES = ("host", "donor")


def test_equal_tokenizers_have_nothing_to_say(make_tokenizer, tmp_path):
    a, b = make_tokenizer(tmp_path / "a"), make_tokenizer(tmp_path / "b")
    assert tokenizer_differences(NAMES, a, b) == []
    assert not id_maps_differ(a, b)


def test_another_name_for_a_special_id_leaves_the_id_map_alone(make_tokenizer, tmp_path):
    a = make_tokenizer(tmp_path / "a")
    b = make_tokenizer(tmp_path / "b", eos="|||IP_ADDRESS|||")
    (said,) = tokenizer_differences(NAMES, a, b)
    assert said.startswith("Only the names of special ids differ between host and donor: id 0 is")
    assert not id_maps_differ(a, b)


def test_other_ids_for_words_are_a_real_difference(make_tokenizer, tmp_path):
    a, b = make_tokenizer(tmp_path / "a"), make_tokenizer(tmp_path / "b", words=("no", "yes"))
    said = tokenizer_differences(NAMES, a, b)
    assert said == [
        "Token ids of ordinary text really differ between host and donor "
        "(2 ids with another token; id 2 is 'yes' and 'no')."
    ]
    assert id_maps_differ(a, b)


def test_extra_ids_end_ids_and_templates_are_reported(make_tokenizer, tmp_path):
    a = make_tokenizer(tmp_path / "a")
    b = make_tokenizer(tmp_path / "b", words=("yes", "no"), eos="</s>", eos_id=3, template=None)
    said = " ".join(tokenizer_differences(NAMES, a, b))
    assert "eos_token: host uses id 0, donor uses id 3." in said
    assert "only host has one; prompts are rendered with host's." in said
    longer = make_tokenizer(tmp_path / "c", words=("yes", "no", "perhaps"))
    assert "1 ids exist only in donor: 4 'perhaps'." in tokenizer_differences(NAMES, a, longer)


def test_a_missing_tokenizer_is_reported(make_tokenizer, tmp_path):
    a = make_tokenizer(tmp_path / "a")
    assert tokenizer_differences(NAMES, a, None) == ["donor has no tokenizer."]
    assert tokenizer_differences(NAMES, None, None) == []


def test_end_ids_are_the_union_of_all_that_a_checkpoint_says(make_olmoe, make_tokenizer, tmp_path):
    path = make_olmoe(tmp_path / "a")
    file = path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [0, 9]}))
    tokenizer = make_tokenizer(path, eos="</s>", eos_id=3)
    assert eos_ids(open_checkpoint(path), tokenizer) == {0, 3, 9}


def test_a_broken_tokenizer_is_one_clear_error(make_olmoe, tmp_path):
    path = make_olmoe(tmp_path / "a")
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}')
    with pytest.raises(CheckpointError, match="the tokenizer does not load"):
        load_tokenizer(open_checkpoint(path))
