import json

import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import save_file

from moegraft.checkpoint import open_checkpoint
from moegraft.checkpoint.card import (
    Licence,
    base_models,
    card_metadata,
    common_licence,
    hub_name,
    stated_licence,
    write_card,
)
from moegraft.errors import OutputError, RecipeError
from tiny_families import build_tiny

MIT = "---\nlicense: mit\nbase_model: some/base\n---\n"
OURS = "---\nlicense: mit\nbase_model: [org/a, org/b]\ntags: [moegraft]\n---\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("card") / "a model"
    build_tiny("olmo2").save_pretrained(made)
    return made


def with_card(folder, text):
    (folder / "README.md").write_text(text)
    return open_checkpoint(folder)


def test_a_card_is_read_back_as_it_was_written(tmp_path):
    bases = ["org/a", "b", "org/a"]
    datasets = ["org/data"]
    made = card_metadata(bases, "merge", Licence("mit"), is_moe=True, datasets=datasets)
    write_card(tmp_path, made, "# title\n")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == made
    assert card.data.base_model == ["org/a", "b"]
    assert card.data.datasets == ["org/data"]
    assert card.data.tags == ["moegraft", "merge", "moe"]
    assert card.text.strip() == "# title"
    plain = card_metadata(["x"], "finetune", Licence(None), is_moe=False)
    assert "license" not in plain and "datasets" not in plain and plain["tags"] == ["moegraft"]
    with pytest.raises(OutputError, match=r"README.md: cannot be written"):
        write_card(tmp_path / "gone", made, "")


def test_what_a_folder_is_based_on_is_itself_or_what_it_was_made_from(folder):
    assert base_models(with_card(folder, MIT)) == ["a-model"]
    assert base_models(with_card(folder, OURS)) == ["org/a", "org/b"]
    assert hub_name("ein Modell..v2--x") == "ein-Modell-v2-x"


def test_licences_that_differ_have_to_be_told(folder, tmp_path):
    ours = with_card(folder, MIT)
    assert stated_licence(ours) == Licence("mit")
    (tmp_path / "config.json").write_text(json.dumps(dict(ours.config)))
    save_file({}, tmp_path / "model.safetensors")
    (tmp_path / "README.md").write_text("---\nlicense: gpl\n---\n")
    other = type(ours)("x", tmp_path, ours.config, ours.family, ours.tensors)
    assert common_licence({"anchor": ours}, None) == Licence("mit")
    assert common_licence({"anchor": ours, "math": other}, "apache-2.0") == Licence("apache-2.0")
    with pytest.raises(RecipeError, match=r"licences differ \(anchor: mit, math: gpl\); say"):
        common_licence({"anchor": ours, "math": other}, None)
