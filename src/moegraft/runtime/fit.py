"""Memory pre-flight: what a host and its donors will take, before a byte of them is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from moegraft.checkpoint import Checkpoint, open_checkpoint
from moegraft.errors import IncompatibleError, ResourceError
from moegraft.runtime.load import (
    check_family,
    empty,
    is_plain,
    is_stacked_only,
    resolved_dtype,
    skeleton,
    stream,
)
from moegraft.runtime.swap import slots
from moegraft.runtime.weights import StreamedWeights

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
        return (
            f"{self.mode} on {self.device}: peak {size(self.peak_bytes)} ({parts}{process}), "
            "without activations"
        )


@dataclass(frozen=True, slots=True)
class Sources:
    """Opened checkpoints that fit together, and their tensors where these can be streamed."""

    host: Checkpoint
    donors: Mapping[str, Checkpoint]
    dtype: torch.dtype
    device: torch.device
    model: PreTrainedModel | None
    """The host without weights; None where transformers has to decode the stored tensors."""
    own: StreamedWeights | None
    """None together with `model`."""
    streamed: Mapping[str, StreamedWeights]
    identical: Mapping[str, frozenset[str]]
    """By donor, live names whose bits equal the host's."""

    def estimate(self, mode: Mode) -> MemoryEstimate:
        """Peak memory in `mode`.

        Raises:
            ResourceError: `streamed`, and the checkpoints cannot be streamed.
        """
        process = _process_bytes() if self.device.type == "cpu" else 0
        if self.own is None:
            return self._estimate_converted(mode, process)
        names = _distinct(self.own)
        held = sum(
            weights.nbytes(name)
            for donor, weights in self.streamed.items()
            for name in _distinct(weights)
            if name not in self.identical[donor]
        )
        largest = max(self.own.nbytes(name) for name in names)
        return MemoryEstimate(
            mode=mode,
            device=str(self.device),
            host_bytes=sum(self.own.nbytes(name) for name in names),
            donor_bytes=held if mode == "resident" else 0,
            transient_bytes=largest if mode == "streamed" else 0,
            process_bytes=process,
        )

    def _estimate_converted(self, mode: Mode, process: int) -> MemoryEstimate:
        if mode == "streamed":
            raise ResourceError(
                f"{self.host.source}: its tensors are packed or converted on load, so donors "
                "cannot be streamed; both must fit into memory"
            )
        on_cpu = self.device.type == "cpu"
        stored = self.host.num_bytes
        # The CPU decodes packed weights into plain ones; a GPU may keep them packed.
        one = max(stored, _live_bytes(empty(self.host, self.dtype))) if on_cpu else stored
        return MemoryEstimate(
            mode=mode,
            device=str(self.device),
            host_bytes=one,
            donor_bytes=one * len(self.donors),
            transient_bytes=stored * (1 + len(self.donors)) if on_cpu else 0,
            process_bytes=process,
        )


def prepare(
    host: str, donors: Mapping[str, str], *, device: torch.device, dtype: str, experts: str
) -> Sources:
    """Open all checkpoints, check that they fit together, and find what they share.

    Reads headers, and of each tensor as much as it takes to see that host and donor differ.

    Raises:
        CheckpointError: a source cannot be opened.
        IncompatibleError: a donor does not fit the host.
    """
    checkpoint = open_checkpoint(host)
    opened = {name: open_checkpoint(source) for name, source in donors.items()}
    for name, donor in opened.items():
        check_family(checkpoint, name, donor)
    kind = resolved_dtype(dtype, checkpoint, opened)
    plain = all(is_plain(c) for c in (checkpoint, *opened.values()))
    model = skeleton(checkpoint, kind, experts) if plain else None
    if model is None or not is_stacked_only(model):
        return Sources(checkpoint, opened, kind, device, None, None, {}, {})
    own = stream(checkpoint, model, device)
    streamed, identical = {}, {}
    for name, donor in opened.items():
        try:
            streamed[name] = stream(donor, model, device)
        except IncompatibleError as error:
            raise IncompatibleError(f"donor {name!r} does not fit the host: {error}") from error
        weights = streamed[name]
        identical[name] = frozenset(n for n in own if own.equals(weights, n))
    return Sources(checkpoint, opened, kind, device, model, own, streamed, identical)


def estimate_memory(
    host: str,
    donors: Mapping[str, str],
    mode: Mode = "resident",
    *,
    device: str = "cpu",
    dtype: str = "auto",
) -> MemoryEstimate:
    """Peak memory of `Host.load` and of switching, within 10 %, before anything is loaded.

    Raises:
        CheckpointError: a source cannot be opened.
        IncompatibleError: a donor does not fit the host.
        ResourceError: `mode` is not possible for these checkpoints.
    """
    where = torch.device(device)
    sources = prepare(host, donors, device=where, dtype=dtype, experts="eager")
    return sources.estimate(mode)


def choose(sources: Sources, budget_bytes: int | None) -> MemoryEstimate:
    """The fastest mode that fits into `budget_bytes`, or into what the device has free.

    Raises:
        ResourceError: none does; the message says what would.
    """
    free = free_bytes(sources.device) if budget_bytes is None else budget_bytes
    resident = sources.estimate("resident")
    if resident.tensor_bytes <= free:
        return resident
    which = "free" if budget_bytes is None else "allowed"
    if sources.own is None:
        raise ResourceError(
            f"{size(free)} {which} on {sources.device}, but {resident}; its checkpoints are packed "
            f"or converted on load, so both must fit: allow {size(resident.tensor_bytes)}"
        )
    streamed = sources.estimate("streamed")
    if streamed.tensor_bytes <= free:
        return streamed
    half = " or dtype bfloat16" if sources.dtype.itemsize > 2 else ""
    raise ResourceError(
        f"{size(free)} {which} on {sources.device}, but even with donors left on disk the tensors "
        f"take {size(streamed.tensor_bytes)} (both in memory: {size(resident.tensor_bytes)}); "
        f"use a device with that much memory{half}"
    )


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


def _distinct(weights: StreamedWeights) -> list[str]:
    """One name for each stored tensor: tied names count once."""
    return list({reads: name for name, reads in reversed(weights.reads.items())}.values())


def _live_bytes(model: PreTrainedModel) -> int:
    distinct = {id(slot.tensor): slot.tensor for slot in slots(model).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())


def _process_bytes() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def _number(path: str) -> int | None:
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
