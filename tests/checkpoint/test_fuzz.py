"""Whatever stands in the files, nothing but a MoegraftError comes out of the reader."""

import json
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moegraft.checkpoint import open_checkpoint, read_array, read_bytes
from moegraft.checkpoint.header import DTYPE_BITS, read_header
from moegraft.errors import MoegraftError
from small_checkpoints import CONFIG, make_folder, make_raw

FILES = ("model-00002-of-00003.safetensors", "model.safetensors.index.json", "config.json")
HEALTH = [HealthCheck.too_slow, HealthCheck.data_too_large]
QUICK = settings(max_examples=50, deadline=None, suppress_health_check=HEALTH, derandomize=True)
LONG = settings(max_examples=2_000, deadline=None, suppress_health_check=HEALTH)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["F32", "BF16", "../x.safetensors", "/etc/passwd", "model.bin", "olmoe"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
tensor_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(sorted(DTYPE_BITS)) | json_values,
        "shape": st.lists(st.integers(-1, 5), max_size=4) | json_values,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | json_values,
    }
)
headers = st.dictionaries(
    st.text(max_size=8) | st.sampled_from(["__metadata__", "lm_head.weight"]),
    tensor_entries | json_values,
    max_size=4,
)


def read_everything(folder: Path) -> None:
    """Use the reader as every command does; errors that users may see are fine."""
    try:
        checkpoint = open_checkpoint(folder, unknown="host")
        checkpoint.header_hashes()
        for stored in checkpoint.pieces().values():
            assert len(read_bytes(stored)) == stored.nbytes
        for tensor in checkpoint.tensors.values():
            read_array(tensor)
        open_checkpoint(folder)
    except MoegraftError as error:
        assert "\n" not in str(error)
        str(error).encode()


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    """The files of a valid checkpoint in three shards."""
    with tempfile.TemporaryDirectory() as root:
        folder = make_folder(Path(root) / "model", num_shards=3)
        return {file.name: file.read_bytes() for file in folder.iterdir()}


def check_folder(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as root:
        for name, content in files.items():
            (Path(root) / name).write_bytes(content)
        read_everything(Path(root))


def corrupt(data: st.DataObject, content: bytes) -> bytes:
    """Truncated, overwritten, cut out, doubled, or extended somewhere."""
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(len(content), start + 64)))
    patch = data.draw(st.binary(max_size=16) | st.sampled_from([b'"', b"}", b"9" * 30, b"null"]))
    kind = data.draw(st.sampled_from(["truncate", "replace", "double"]))
    if kind == "truncate":
        return content[:start]
    middle = patch if kind == "replace" else content[start:stop] * 2
    return content[:start] + middle + content[stop:]


def replace_value(data: st.DataObject, content: bytes) -> bytes:
    """Valid JSON in which one value, at any depth, became another."""
    root = json.loads(content)
    at = root
    while True:
        key = data.draw(st.sampled_from(sorted(at)))
        if not isinstance(at[key], dict) or not at[key] or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = data.draw(json_values | tensor_entries)
    return json.dumps(root).encode()


def corrupted_files(data: st.DataObject, whole: dict[str, bytes]) -> None:
    name = data.draw(st.sampled_from(FILES))
    check_folder(whole | {name: corrupt(data, whole[name])})


def replaced_values(data: st.DataObject, whole: dict[str, bytes]) -> None:
    name = data.draw(st.sampled_from(FILES))
    content = whole[name]
    if name.endswith(".json"):
        check_folder(whole | {name: replace_value(data, content)})
        return
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = replace_value(data, content[8:end])
    check_folder(whole | {name: struct.pack("<Q", len(header)) + header + content[end:]})


def any_header(header: bytes, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as root:
        make_raw(Path(root) / "model.safetensors", header, content)
        (Path(root) / "config.json").write_text(json.dumps(CONFIG))
        read_everything(Path(root))
        try:
            found = read_header(Path(root) / "model.safetensors")
        except MoegraftError:
            return
        assert sum(tensor.nbytes for tensor in found.values()) == len(content)


@QUICK
@given(data=st.data())
def test_corrupted_files_never_surprise(whole, data):
    corrupted_files(data, whole)


@QUICK
@given(data=st.data())
def test_replaced_values_never_surprise(whole, data):
    replaced_values(data, whole)


@QUICK
@given(
    header=st.binary(max_size=64) | headers.map(lambda h: json.dumps(h).encode()),
    content=st.binary(max_size=64),
)
def test_any_header_never_surprises(header, content):
    any_header(header, content)


@QUICK
@given(content=st.binary(max_size=64))
def test_any_file_never_surprises(content):
    check_folder({"config.json": json.dumps(CONFIG).encode(), "model.safetensors": content})


@pytest.mark.slow
@pytest.mark.timeout(3600)
@LONG
@given(data=st.data(), header=headers, content=st.binary(max_size=64))
def test_much_fuzzing_never_surprises(whole, data, header, content):
    corrupted_files(data, whole)
    replaced_values(data, whole)
    any_header(json.dumps(header).encode(), content)
