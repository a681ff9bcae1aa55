"""Estimates and measurements of memory."""

import torch

from moegraft.runtime.memory import MemoryEstimate, free_bytes, size


def test_free_memory_is_measured():
    assert free_bytes(torch.device("cpu")) > 10_000_000


def test_sizes_are_readable():
    assert size(13_840_000_000) == "13.8 GB"
    assert size(212_400_000) == "212.4 MB"


def test_an_estimate_over_several_devices_is_their_sum():
    parts = [
        MemoryEstimate("resident", f"cuda:{i}", 10**9 * (i + 1), 10**8, 0, 0) for i in range(2)
    ]
    total = MemoryEstimate.total(parts)
    assert total.tensor_bytes == sum(part.tensor_bytes for part in parts)
    assert total.by_device == tuple(parts)
    assert MemoryEstimate.total(parts[:1]) is parts[0]
    assert parts[0].by_device == (parts[0],)
    assert str(total) == (
        "resident on cuda:0 and cuda:1: peak 3.2 GB (host 3.0 GB, donors 200.0 MB, "
        "transient 0.0 MB), cuda:0 1.1 GB, cuda:1 2.1 GB, without activations"
    )
