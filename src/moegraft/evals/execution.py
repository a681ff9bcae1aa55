"""Where and how models are evaluated: device, data, shards, batches; never what is asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moegraft.evals.run import Shard


@dataclass(frozen=True, slots=True)
class Execution:
    """Where and how a run is made; nothing here changes what is asked."""

    device: str = "auto"
    device_map: str | Mapping[str, str | int] | None = None
    """In place of `device`: `auto`, `balanced`, `sequential`, or a device for each module."""
    data_dir: Path | None = None
    """A folder with one sub-folder per data set, instead of the Hub."""
    include: tuple[Path, ...] = ()
    """More folders with task files."""
    shard: Shard = (1, 1)
    memory_budget_bytes: int | None = None
    batch_tokens: int | None = None
    """Tokens of one forward pass; None lets the scorer choose."""
    batch_rows: int | None = None
    """Generations in flight; None lets the scorer choose."""
    command: str | None = None
    """The command line, for the report."""


def dtype_on(
    device: str, dtype: str, device_map: str | Mapping[str, str | int] | None = None
) -> str:
    """The dtype to load in; `auto` is float32 on a CPU, where most have no fast bfloat16."""
    import torch

    devices = device_map.values() if isinstance(device_map, Mapping) else [device]
    here = torch.cuda.is_available()
    on_cpu = all(one == "cpu" or (one == "auto" and not here) for one in devices)
    return "float32" if dtype == "auto" and on_cpu else dtype
