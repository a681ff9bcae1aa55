import gc
import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from moegraft.checkpoint.header import read_header
from moegraft.checkpoint.tensors import _maps, hash_bytes, load_tensor, read_array, read_bytes
from moegraft.errors import CheckpointError
from small_checkpoints import make_file

DTYPES = [
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
]


def stored(tmp_path, tensor):
    save_file({"x": tensor}, tmp_path / "x.safetensors")
    return read_header(tmp_path / "x.safetensors")["x"]


def any_bits(dtype, shape=(3, 5)):
    torch.manual_seed(0)
    dtype = getattr(torch, dtype)
    raw = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    return raw.flatten().view(dtype).reshape(shape) if dtype is not torch.bool else raw[..., 0] > 99


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_loads_with_exactly_its_bits(dtype, tmp_path):
    tensor = any_bits(dtype)
    header = stored(tmp_path, tensor)
    loaded = load_tensor(header)
    assert loaded.dtype == tensor.dtype
    assert loaded.shape == tensor.shape
    expected = tensor.view(torch.uint8).numpy().tobytes()
    assert loaded.view(torch.uint8).numpy().tobytes() == expected == read_bytes(header)
    assert hash_bytes(header) == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_has_the_tensor_s_values_or_is_refused(dtype, tmp_path):
    tensor = any_bits(dtype)
    header = stored(tmp_path, tensor)
    if dtype.startswith("float8"):
        with pytest.raises(CheckpointError, match="which numpy cannot hold"):
            read_array(header)
        return
    wide = tensor.float() if dtype == "bfloat16" else tensor
    assert read_array(header).tobytes() == wide.numpy().tobytes()
    assert read_array(header).shape == tensor.shape


def test_minus_zero_and_nan_payloads_survive(tmp_path):
    words = torch.tensor([-0x8000, 0x7FC1, -0x7F, 0x7F80], dtype=torch.int16)
    header = stored(tmp_path, words.view(torch.bfloat16))
    assert torch.equal(load_tensor(header).view(torch.int16), words)
    assert np.signbit(read_array(header)[0])


def test_packed_four_bit_numbers_load_two_an_element(tmp_path):
    file = make_file(tmp_path / "x.safetensors", {"x": ("F4", (2, 4), b"abcd")})
    loaded = load_tensor(read_header(file)["x"])
    assert loaded.shape == (2, 2)
    assert loaded.view(torch.uint8).numpy().tobytes() == b"abcd"
    file = make_file(tmp_path / "x.safetensors", {"x": ("F4", (2, 1), b"a")})
    with pytest.raises(CheckpointError, match="F4 needs an even last axis"):
        load_tensor(read_header(file)["x"])


def test_six_bit_numbers_have_bytes_but_no_tensor(tmp_path):
    file = make_file(tmp_path / "x.safetensors", {"x": ("F6_E2M3", (4,), b"abc")})
    assert read_bytes(read_header(file)["x"]) == b"abc"
    with pytest.raises(CheckpointError, match="which torch cannot hold"):
        load_tensor(read_header(file)["x"])


def test_an_empty_tensor_and_a_scalar_load(tmp_path):
    assert load_tensor(stored(tmp_path, torch.zeros(0, 3))).shape == (0, 3)
    assert load_tensor(stored(tmp_path, torch.tensor(2.5))).item() == 2.5


@pytest.mark.parametrize("pad", range(4))
def test_a_header_of_odd_length_makes_no_difference(pad, tmp_path):
    raw = np.arange(3, dtype="<f4").tobytes()
    file = make_file(tmp_path / "x.safetensors", {"x": ("F32", (3,), raw)}, pad=pad)
    assert load_tensor(read_header(file)["x"]).tolist() == [0.0, 1.0, 2.0]


def test_writing_to_a_loaded_tensor_never_reaches_the_file(tmp_path):
    header = stored(tmp_path, torch.ones(4))
    before = header.file.read_bytes()
    load_tensor(header).zero_()
    assert header.file.read_bytes() == before


def test_tensors_of_one_file_share_one_map_that_ends_with_them(tmp_path):
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, tmp_path / "x.safetensors")
    headers = read_header(tmp_path / "x.safetensors")
    gc.collect()
    before = len(_maps)
    loaded = [load_tensor(header) for header in headers.values()]
    assert len(_maps) == before + 1
    del loaded
    gc.collect()
    assert len(_maps) == before


def test_a_file_that_shrank_or_went_is_one_line(tmp_path):
    header = stored(tmp_path, torch.ones(4))
    header.file.write_bytes(header.file.read_bytes()[:-3])
    for read in (read_bytes, load_tensor, hash_bytes, read_array):
        with pytest.raises(CheckpointError, match="ends inside x; was it rewritten"):
            read(header)
    header.file.unlink()
    for read in (read_bytes, load_tensor):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read(header)
