"""The memory pre-flight."""

import pytest

from moegraft.errors import ResourceError
from moegraft.runtime import Host, fit

TENSORS = 2 * 128 * 32 + 32 + 2 * (4 * 32 * 32 + 4 * 32 + 8 * 32 + 8 * 3 * 32 * 16)
LARGEST = 8 * 32 * 32


def test_the_estimate_counts_every_tensor(olmoe_pair):
    donors = {"donor": str(olmoe_pair[1]), "again": str(olmoe_pair[0])}
    resident = fit.estimate_memory(str(olmoe_pair[0]), donors)
    assert resident.host_bytes == 4 * TENSORS
    assert resident.donor_bytes == 4 * TENSORS, "the donor that equals the host costs nothing"
    assert resident.peak_bytes == 8 * TENSORS + resident.process_bytes
    streamed = fit.estimate_memory(str(olmoe_pair[0]), donors, "streamed")
    assert streamed.tensor_bytes == 4 * (TENSORS + LARGEST)
    assert str(streamed).startswith("streamed on cpu: peak ")
    assert "(host 0.2 MB, donors 0.0 MB, transient 0.0 MB, Python " in str(streamed)


def test_tied_tensors_count_once(make_olmoe, tmp_path):
    path = make_olmoe(tmp_path / "tied", tie_word_embeddings=True)
    assert fit.estimate_memory(str(path), {}).host_bytes == 4 * (TENSORS - 128 * 32)


def test_the_budget_decides_the_mode(olmoe_pair):
    host, donors = str(olmoe_pair[0]), {"donor": str(olmoe_pair[1])}
    for budget, mode in ((8 * TENSORS, "resident"), (4 * (TENSORS + LARGEST), "streamed")):
        loaded = Host.load(host, donors, device="cpu", memory_budget_bytes=budget)
        assert loaded.memory.mode == mode
    with pytest.raises(
        ResourceError,
        match=r"allowed on cpu, but even .* \(both in memory: .*\); use .* dtype bfloat16",
    ):
        Host.load(host, donors, device="cpu", memory_budget_bytes=4 * TENSORS)


def test_free_memory_is_measured():
    import torch

    assert fit.free_bytes(torch.device("cpu")) > 10_000_000


def test_sizes_are_readable():
    assert fit.size(13_840_000_000) == "13.8 GB"
    assert fit.size(212_400_000) == "212.4 MB"
