import json
import shutil

import pytest

from moegraft.checkpoint.folder import index_files, read_json, read_tensors
from moegraft.errors import CheckpointError
from small_checkpoints import make_file, olmoe_tensors, write_index

INDEX = "model.safetensors.index.json"


def weight_map(folder):
    return json.loads((folder / INDEX).read_text())["weight_map"]


def refused(folder, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        read_tensors(folder)
    assert "\n" not in str(caught.value)


def test_one_file_or_three_hold_the_same_tensors(folder, sharded):
    one, three = read_tensors(folder), read_tensors(sharded)
    assert list(one) == list(three) == list(olmoe_tensors())
    assert len({tensor.file for tensor in three.values()}) == 3


def test_a_single_file_wins_over_an_index_as_in_transformers(folder, sharded):
    shutil.copy(folder / "model.safetensors", sharded)
    assert index_files(sharded) == ("model.safetensors",)
    assert {t.file.name for t in read_tensors(sharded).values()} == {"model.safetensors"}


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    refused(sharded, "names shard 'model-00002-of-00003.safetensors', which does not exist")


@pytest.mark.parametrize("shard", ["../x.safetensors", "/x.safetensors", "a/../../x.safetensors"])
def test_a_shard_outside_the_folder_is_refused(shard, sharded):
    make_file(sharded.parent / "x.safetensors", {})
    write_index(sharded, weight_map(sharded) | {"lm_head.weight": shard})
    refused(sharded, "lies outside the checkpoint's folder")


@pytest.mark.parametrize("shard", [None, 1, "", [], "a\nb"])
def test_a_shard_without_a_name_is_refused(shard, sharded):
    write_index(sharded, {"lm_head.weight": shard})
    refused(sharded, "tensor 'lm_head.weight' has no file name")


def test_an_index_never_leads_to_a_pickle(sharded):
    write_index(sharded, {"lm_head.weight": "pytorch_model.bin"})
    refused(sharded, "'pytorch_model.bin' is no safetensors file")


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_weight_map_is_refused(content, sharded):
    (sharded / INDEX).write_text(content)
    refused(sharded, "weight_map is missing or empty")


def test_a_tensor_that_no_shard_has_is_named(sharded):
    first = next(iter(weight_map(sharded).values()))
    write_index(sharded, weight_map(sharded) | {"ghost": first})
    refused(sharded, f"places tensor 'ghost' in {first}, but no shard has it")


def test_a_tensor_in_another_shard_than_the_index_says_is_named(sharded):
    files = weight_map(sharded)
    last = files["model.norm.weight"]
    write_index(sharded, files | {"lm_head.weight": last})
    refused(sharded, f"places tensor 'lm_head.weight' in {last}, but it is in model-00001")


def test_a_tensor_that_the_index_does_not_know_is_named(sharded):
    files = weight_map(sharded)
    del files["lm_head.weight"]
    write_index(sharded, files)
    refused(sharded, "does not list 1 tensors of its shards, the first is 'lm_head.weight'")


def test_one_tensor_in_two_files_is_refused(sharded):
    files = weight_map(sharded)
    make_file(sharded / "more.safetensors", {"lm_head.weight": ("U8", (1,), b"x")})
    write_index(sharded, files | {"other": "more.safetensors"})
    refused(sharded, "tensor 'lm_head.weight' is in model-00001-of-00003.* and in more.safetensors")


def test_pickles_are_never_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "only pickled weights, which can run code and are never read")


@pytest.mark.parametrize(
    "name, match",
    [
        ("adapter_model.safetensors", "holds an adapter"),
        ("consolidated.safetensors", "has consolidated.safetensors but neither"),
        ("notes.txt", "neither model.safetensors nor"),
    ],
)
def test_a_folder_without_weights_says_what_it_has_instead(name, match, folder):
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, match)


def test_a_missing_folder_is_one_line(tmp_path):
    refused(tmp_path / "none", "no such folder")


@pytest.mark.parametrize(
    "content, match",
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[]", "expected a JSON object, got list"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_broken_json_is_one_line(content, match, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=match) as caught:
        read_json(tmp_path / "config.json")
    assert "\n" not in str(caught.value)


def test_missing_json_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no such file; is this a checkpoint folder"):
        read_json(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path)
