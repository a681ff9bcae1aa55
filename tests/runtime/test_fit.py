"""The memory pre-flight."""

import json
import os
import subprocess
import sys

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


MEASURE = """
import json, sys
from moegraft.runtime import Host

host, donor, budget = sys.argv[1], sys.argv[2], int(sys.argv[3]) or None
loaded = Host.load(host, {"donor": donor}, device="cpu", memory_budget_bytes=budget)
with loaded.with_patches(loaded.donor_patches("donor")):
    pass
status = open("/proc/self/status").read().splitlines()
peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
print(json.dumps([loaded.memory.mode, peak, loaded.memory.peak_bytes, loaded.memory.process_bytes]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("mode", ["resident", "streamed"])
def test_the_estimate_is_within_ten_percent_of_the_peak(make_olmoe, tmp_path, mode):
    sizes = {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 256, "num_experts": 32}
    paths = [
        str(make_olmoe(tmp_path / n, seed=s, dtype="bfloat16", num_hidden_layers=16, **sizes))
        for s, n in enumerate("ab")
    ]
    one = fit.estimate_memory(paths[0], {}).host_bytes
    budget = int(1.15 * one) if mode == "streamed" else 0
    command = [sys.executable, "-c", MEASURE, *paths, str(budget)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    got, peak, estimate, process = json.loads(done.stdout.splitlines()[-1])
    assert got == mode
    assert abs(peak / estimate - 1) < 0.1
    if mode == "streamed":
        assert peak - process <= 1.15 * one
