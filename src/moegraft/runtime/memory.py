"""What host and donors take in memory, and what there is: estimates and measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Mode = Literal["resident", "streamed"]
"""`resident`: host and donors in memory. `streamed`: the host only; donors are read when needed."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Peak memory of loading and switching, without activations and caches."""

    mode: Mode
    device: str
    host_bytes: int
    donor_bytes: int
    """Held beside the host: tensors that differ from it, for `resident` only."""
    transient_bytes: int
    """On top while loading or switching: the largest tensor, or mapped files."""
    process_bytes: int
    """Taken by Python and its libraries already; 0 on a GPU, where it is another memory."""
    parts: tuple["MemoryEstimate", ...] = ()
    """One for each device where there are several; this is then their sum."""

    @classmethod
    def total(cls, parts: Sequence["MemoryEstimate"]) -> "MemoryEstimate":
        """The sum over devices; of a single one, the part itself."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            parts[0].mode,
            " and ".join(part.device for part in parts),
            *(sum(getattr(part, name) for part in parts) for name in _SUMMED),
            parts=tuple(parts),
        )

    @property
    def by_device(self) -> tuple["MemoryEstimate", ...]:
        """One estimate for each device."""
        return self.parts or (self,)

    @property
    def tensor_bytes(self) -> int:
        """Peak of the tensors alone: what a memory budget is compared with."""
        return self.host_bytes + self.donor_bytes + self.transient_bytes

    @property
    def peak_bytes(self) -> int:
        """Peak of the whole process on this device."""
        return self.tensor_bytes + self.process_bytes

    def __str__(self) -> str:
        parts = (
            f"host {size(self.host_bytes)}, donors {size(self.donor_bytes)}, "
            f"transient {size(self.transient_bytes)}"
        )
        process = f", Python {size(self.process_bytes)}" if self.process_bytes else ""
        each = "".join(f", {part.device} {size(part.peak_bytes)}" for part in self.parts)
        return (
            f"{self.mode} on {self.device}: peak {size(self.peak_bytes)} ({parts}{process}){each}, "
            "without activations"
        )


_SUMMED = ("host_bytes", "donor_bytes", "transient_bytes", "process_bytes")
"""Fields of an estimate that are numbers, in their order."""


def free_bytes(device: torch.device) -> int:
    """Memory that tensors can still take on `device`, container limits included."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    free = psutil.virtual_memory().available
    limit, used = (_number(f"/sys/fs/cgroup/memory.{what}") for what in ("max", "current"))
    return free if limit is None or used is None else min(free, max(0, limit - used))


def size(num_bytes: int) -> str:
    """A number of bytes for people: `13.8 GB`, `212.4 MB`."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def process_bytes() -> int:
    """Memory that this process takes now."""
    import psutil

    return psutil.Process().memory_info().rss


def _number(path: str) -> int | None:
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
