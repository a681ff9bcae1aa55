"""Trains a frozen model in two processes: DDP through accelerate, then fully_shard, with gloo."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.distributed as dist
from accelerate import Accelerator
from frozen_moves import CHOSEN, assert_only_chosen_moved, ids, small, state
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from moegraft.train.freeze import freeze

torch.set_num_threads(1)
work = Path(sys.argv[1])


def train(model, optimizer, rank, backward):
    for step in range(4):
        batch = ids(2 * step + rank)
        backward(model(input_ids=batch, labels=batch, use_cache=False).loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def ddp(rank):
    accelerator = Accelerator(cpu=True)
    model = small("flex_olmo")
    before = state(model)
    frozen = freeze(model, CHOSEN)
    wrapped, optimizer = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    )
    assert isinstance(wrapped, DistributedDataParallel) and accelerator.num_processes == 2
    frozen.guard(optimizer)
    train(wrapped, optimizer, rank, accelerator.backward)
    frozen.check()
    assert_only_chosen_moved(before, state(model), frozen.opened)
    torch.save(state(model), work / f"ddp-{rank}.pt")


def sharded(rank):
    """Three experts, so that one process holds two of them and the other a single one."""
    mesh = init_device_mesh("cpu", (2,))
    model = small("olmoe", num_experts=3)
    before = state(model)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    frozen = freeze(model, CHOSEN)
    experts = model.model.layers[0].mlp.experts.gate_up_proj
    assert isinstance(experts, DTensor) and experts.placements[0].is_shard(0)
    assert len(experts.to_local()) == 2 - rank and len(experts) == 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, foreach=True)
    frozen.guard(optimizer)
    train(model, optimizer, rank, lambda loss: loss.backward())
    frozen.check()
    after = state(model)
    assert_only_chosen_moved(before, after, frozen.opened)
    kept = {value.shape[0] for value in optimizer.state[experts].values() if value.ndim}
    assert kept == ({1} if rank == 0 else set())  # expert 1 lives in the first process


def run(what, port):
    pids = []
    for rank in range(2):
        pids.append(os.fork())
        if pids[-1]:
            continue
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
        }
        code = 1
        try:
            if what is sharded:  # accelerate makes its own
                dist.init_process_group("gloo")
            what(rank)
            dist.destroy_process_group()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


run(ddp, free_port())
first, second = (torch.load(work / f"ddp-{rank}.pt") for rank in range(2))
assert all(torch.equal(first[name], second[name]) for name in first)
sys.stdout.write("ddp\n")
sys.stdout.flush()  # before the next fork copies the buffer
run(sharded, free_port())
sys.stdout.write("fully_shard\n")
