import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import moegraft
from moegraft.checkpoint import open_checkpoint, read_bytes
from moegraft.errors import CheckpointError, FamilyError
from moegraft.families import Key
from small_checkpoints import CONFIG, make_file, make_folder, olmoe_tensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refused(source, match, error=CheckpointError, **how):
    with pytest.raises(error, match=match) as caught:
        open_checkpoint(source, **how)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_knows_its_sizes_and_files(sharded):
    checkpoint = open_checkpoint(sharded)
    assert (checkpoint.num_layers, checkpoint.num_experts) == (2, 3)
    assert (checkpoint.layout, checkpoint.family.name) == ("published", "olmoe")
    assert not checkpoint.tied_embeddings
    assert checkpoint.revision is None
    assert checkpoint.source == str(sharded)
    assert [file.name for file in checkpoint.tokenizer_files] == ["tokenizer.json"]
    assert [file.name for file in checkpoint.files] == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    assert checkpoint.num_bytes == sum(len(raw) for _, _, raw in olmoe_tensors().values())


def test_pieces_hold_exactly_the_stored_bytes(folder, sharded):
    stored = {name: raw for name, (_, _, raw) in olmoe_tensors().items()}
    for path in (folder, sharded):
        checkpoint = open_checkpoint(path)
        assert len(checkpoint.pieces()) == len(stored)
        for piece in checkpoint.pieces().values():
            assert read_bytes(piece) == stored[piece.name] == read_bytes(piece.tensor)
    key = Key("experts", 1, 2, "down.weight")
    assert checkpoint.pieces()[key].name == "model.layers.1.mlp.experts.2.down_proj.weight"


def test_pieces_are_computed_once(folder):
    checkpoint = open_checkpoint(folder)
    assert checkpoint.pieces() is checkpoint.pieces()


def test_a_piece_that_is_stored_twice_is_refused(folder):
    tensors = olmoe_tensors()
    prefix = "model.layers.0.mlp.experts."
    fused = (f"{prefix}gate_up_proj", ("BF16", (3, 4, 4), b"\0" * 96))
    make_file(folder / "model.safetensors", tensors | dict([fused]))
    refused(folder, r"is stored twice, in model\.layers\.0.* and in model\.layers\.0")


def test_hashes_identify_header_and_content(sharded):
    checkpoint = open_checkpoint(sharded)
    headers = checkpoint.header_hashes()
    for name, identity in headers.items():
        raw = (sharded / name).read_bytes()
        length = 8 + int.from_bytes(raw[:8], "little")
        assert identity["header_sha256"] == hashlib.sha256(raw[:length]).hexdigest()
        assert identity["size"] == len(raw)
    contents = checkpoint.content_hashes()
    for name, (_, _, raw) in olmoe_tensors().items():
        assert contents[name] == hashlib.sha256(raw).hexdigest()


def test_an_unknown_name_is_an_error_or_the_host_s(folder):
    more = {"model.layers.0.novel": ("U8", (1,), b"x")}
    make_file(folder / "model.safetensors", olmoe_tensors() | more)
    told = f"{folder}: tensor 'model.layers.0.novel' fits no pattern.*--unknown host"
    refused(folder, told, FamilyError)
    checkpoint = open_checkpoint(folder, unknown="host")
    assert checkpoint.unknown == ("model.layers.0.novel",)
    assert "model.layers.0.novel" in checkpoint.tensors
    assert len(checkpoint.pieces()) == len(olmoe_tensors())


def test_unknown_names_are_forgiven_but_missing_tensors_are_not(folder):
    tensors = olmoe_tensors() | {"novel": ("U8", (1,), b"x")}
    del tensors["model.layers.1.mlp.experts.2.up_proj.weight"]
    make_file(folder / "model.safetensors", tensors)
    refused(folder, "expert 2 of layer 1 lacks up.weight", unknown="host")


def test_an_unsupported_model_type_is_one_line(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | {"model_type": "mystery"}))
    refused(folder, f"{folder}/config.json: model_type 'mystery'", FamilyError)


def test_a_missing_folder_tells_how_a_repository_is_written(tmp_path):
    refused(tmp_path / "none", "no such folder .a Hub repository is written org/name")
    refused("~nobody-of-that-name/x", "^~nobody-of-that-name/x: no such folder")
    refused("none", "no such folder .a Hub repository is written org/name")


def test_a_folder_without_config_is_one_line(folder):
    (folder / "config.json").unlink()
    refused(folder, "config.json: no such file")


def test_an_unknown_packaged_checkpoint_lists_the_known_ones():
    refused("nano:none", "nano:none: no such packaged checkpoint; there are:")
    refused("nano:../..", "no such packaged checkpoint")


def test_packaged_checkpoints_open_by_name():
    root = Path(moegraft.__file__).parent / "nano" / "checkpoints"
    for config in root.glob("*/config.json"):
        checkpoint = open_checkpoint(f"nano:{config.parent.name}")
        assert checkpoint.path == config.parent


def make_cache(cache: Path, folder: Path, *, repo: str = "org/model", ref: str = "main") -> Path:
    """Lay `folder` out as huggingface_hub's cache has it: blobs, and a snapshot of links."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "refs").mkdir()
    (root / "refs" / ref).write_text(COMMIT)
    for file in folder.iterdir():
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.mark.parametrize("source", ["org/model", "org/model@main", f"org/model@{COMMIT}"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_hub_repository_opens_from_the_local_cache(source, num_shards, cache, tmp_path):
    snapshot = make_cache(cache, make_folder(tmp_path / "model", num_shards=num_shards))
    checkpoint = open_checkpoint(source)
    assert checkpoint.revision == COMMIT
    assert checkpoint.path == snapshot
    assert checkpoint.source == source
    for name, identity in checkpoint.header_hashes().items():
        content = (snapshot / name).read_bytes()
        assert identity["blob"] == hashlib.sha256(content).hexdigest()
    stored = {name: raw for name, (_, _, raw) in olmoe_tensors().items()}
    assert all(read_bytes(t) == stored[name] for name, t in checkpoint.tensors.items())


def test_a_tag_is_resolved_to_its_commit(cache, tmp_path):
    make_cache(cache, make_folder(tmp_path / "model"), ref="v1.0")
    assert open_checkpoint("org/model@v1.0").revision == COMMIT
    refused("org/model@v2.0", "org/model@v2.0: no such folder, and the Hub does not give it")
    refused("org/model", "org/model: no such folder, and the Hub does not give it")


def test_a_shard_that_the_cache_lacks_is_named(cache, tmp_path):
    snapshot = make_cache(cache, make_folder(tmp_path / "model", num_shards=3))
    (snapshot / "model-00002-of-00003.safetensors").unlink()
    refused("org/model", "model-00002-of-00003.safetensors")


def test_a_folder_wins_over_a_repository_of_the_same_name(cache, tmp_path):
    make_cache(cache, make_folder(tmp_path / "model"))
    make_folder(tmp_path / "org" / "model", seed=1)
    checkpoint = open_checkpoint("org/model")
    assert checkpoint.revision is None
    assert checkpoint.path == Path("org/model")


def test_opening_imports_neither_torch_nor_transformers_nor_the_hub_client(folder):
    code = (
        "import sys; from moegraft.checkpoint import open_checkpoint, read_bytes;"
        f"c = open_checkpoint({str(folder)!r}); [read_bytes(p) for p in c.pieces().values()];"
        "c.header_hashes();"
        "print(sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
