import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from moegraft.checkpoint.header import MAX_HEADER_BYTES, read_header, tensor_bytes
from moegraft.errors import CheckpointError
from small_checkpoints import make_file, make_raw

TWO = {"a": ("F32", (2,), b"12345678"), "b": ("U8", (3,), b"abc")}


def entry(dtype="U8", shape=(1,), offsets=(0, 1), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)} | more


def refused(tmp_path, header, data, match):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = make_raw(tmp_path / "x.safetensors", raw, data)
    with pytest.raises(CheckpointError, match=match) as caught:
        read_header(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_header_gives_names_dtypes_shapes_and_absolute_positions(tmp_path):
    file = make_file(tmp_path / "x.safetensors", TWO, metadata={"format": "pt"}, pad=5)
    tensors = read_header(file)
    raw = file.read_bytes()
    for name, (dtype, shape, data) in TWO.items():
        tensor = tensors[name]
        assert (tensor.name, tensor.dtype, tensor.shape) == (name, dtype, shape)
        assert raw[tensor.start : tensor.start + tensor.nbytes] == data


def test_tensors_come_in_the_order_of_their_bytes(tmp_path):
    header = {"b": entry(offsets=(1, 2)), "a": entry(offsets=(0, 1))}
    file = make_raw(tmp_path / "x.safetensors", json.dumps(header).encode(), b"12")
    assert list(read_header(file)) == ["a", "b"]


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int64", "float16", "bfloat16", "float64", "float8_e4m3fn"]
)
def test_files_of_the_reference_writer_are_read(dtype, tmp_path):
    tensors = {"x": torch.ones(2, 3).to(getattr(torch, dtype)), "nothing": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "x.safetensors")
    found = read_header(tmp_path / "x.safetensors")
    assert found["x"].nbytes == tensors["x"].nbytes
    assert found["nothing"].nbytes == 0


def test_a_file_without_tensors_is_valid(tmp_path):
    assert read_header(make_file(tmp_path / "x.safetensors", {})) == {}


def test_four_bit_numbers_take_half_a_byte():
    assert tensor_bytes("F4", (3, 2)) == 3
    assert tensor_bytes("F6_E2M3", (4,)) == 3
    with pytest.raises(ValueError, match="whole bytes"):
        tensor_bytes("F4", (3,))


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path / "none.safetensors")


@pytest.mark.parametrize("size", range(8))
def test_less_than_eight_bytes_is_too_short(size, tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"\0" * size)
    with pytest.raises(CheckpointError, match=f"{size} bytes is too short"):
        read_header(file)


@pytest.mark.parametrize("length", [3, 1 << 40, (1 << 64) - 1, MAX_HEADER_BYTES + 1])
def test_a_header_length_that_lies_is_refused(length, tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointError, match=f"header claims {length} bytes, but the file has 10"):
        read_header(file)


@pytest.mark.parametrize(
    "header, match",
    [
        (b"", "no JSON object"),
        (b"[]", "no JSON object"),
        (b' {"a": 1}', "no JSON object"),
        (b"{", "not valid JSON"),
        (b"{}x", "not valid JSON"),
        (b'{"\xff": 1}', "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"{" + b'"a":{' * 100_000, "nests too deeply"),
        (b'{"a": {}, "a": {}}', "'a' stands twice"),
        (b'{"a": {"dtype": "U8", "dtype": "I8"}}', "'dtype' stands twice"),
    ],
)
def test_a_header_that_is_no_json_object_is_refused(header, match, tmp_path):
    refused(tmp_path, header, b"", match)


@pytest.mark.parametrize("metadata", [None, [], "x", {"format": 1}, {"a": {"b": "c"}}])
def test_metadata_must_be_strings(metadata, tmp_path):
    refused(tmp_path, {"__metadata__": metadata}, b"", "__metadata__ must map strings to strings")


@pytest.mark.parametrize(
    "broken, match",
    [
        (None, "'a' needs dtype, shape and data_offsets only"),
        ({}, "'a' needs dtype, shape and data_offsets only"),
        (entry(more=1), "'a' needs dtype, shape and data_offsets only"),
        (entry(dtype="Q4_K"), "unknown dtype 'Q4_K'"),
        (entry(dtype=["U8"]), "unknown dtype"),
        (entry() | {"dtype": None}, "unknown dtype None"),
        (entry() | {"shape": 1}, "no valid shape: 1"),
        (entry(shape=(-1,)), "no valid shape"),
        (entry(shape=(1.0,)), "no valid shape"),
        (entry(shape=(True,)), "no valid shape"),
        (entry(shape=("1",)), "no valid shape"),
        (entry(shape=[1] * 65), "no valid shape"),
        (entry(shape=(1 << 63,)), "no valid shape"),
        (entry(shape=[1 << 62] * 64), "takes .*far too many"),
        (entry(dtype="F4"), "whole bytes"),
        (entry() | {"data_offsets": None}, "invalid offsets"),
        (entry(offsets=(0,)), "invalid offsets"),
        (entry(offsets=(0, 1, 2)), "invalid offsets"),
        (entry(offsets=(1, 0)), "invalid offsets"),
        (entry(offsets=(-1, 0)), "invalid offsets"),
        (entry(offsets=(0, True)), "invalid offsets"),
        (entry(shape=(2,)), "has 1 bytes, but U8 .2. takes 2"),
        (entry(dtype="F32"), "has 1 bytes, but F32 .1. takes 4"),
    ],
)
def test_a_tensor_entry_that_lies_is_refused(broken, match, tmp_path):
    refused(tmp_path, {"a": broken}, b"x", match)


def test_a_number_that_equals_an_integer_is_still_no_integer(tmp_path):
    header = {"a": entry(), "b": entry(shape=(1.0,), offsets=(1, 2))}
    refused(tmp_path, header, b"xy", "'b' has no valid shape")


@pytest.mark.parametrize("name", ["a\nb", "a\x00", "\ud800", "a\x1b[31m"])
def test_a_name_that_cannot_print_is_refused(name, tmp_path):
    refused(tmp_path, {name: entry()}, b"x", "cannot print")


def test_holes_overlaps_and_leftovers_are_refused(tmp_path):
    two = {"a": entry(), "b": entry(offsets=(2, 3))}
    refused(tmp_path, two, b"xyz", "'b' follows a hole")
    refused(tmp_path, {"a": entry(offsets=(1, 2))}, b"xy", "'a' follows a hole")
    refused(tmp_path, {"a": entry(), "b": entry()}, b"x", "'b' overlaps")
    refused(tmp_path, {"a": entry()}, b"xy", "1 bytes after the last tensor belong to no tensor")


@pytest.mark.parametrize("cut", [1, 3, 10])
def test_a_truncated_file_is_refused(cut, tmp_path):
    file = make_file(tmp_path / "x.safetensors", TWO)
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    with pytest.raises(
        CheckpointError, match=f"truncated: the header describes {len(whole)} bytes"
    ):
        read_header(file)
