"""Memory pre-flight: what a host and its donors will take, before a byte of them is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

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
from moegraft.runtime.memory import MemoryEstimate, Mode, free_bytes, process_bytes, size
from moegraft.runtime.placement import DeviceMap, Placement, parse_device_map, place, spread
from moegraft.runtime.swap import slots
from moegraft.runtime.weights import StreamedWeights


@dataclass(frozen=True, slots=True)
class Sources:
    """Opened checkpoints that fit together, and their tensors where these can be streamed."""

    host: Checkpoint
    donors: Mapping[str, Checkpoint]
    dtype: torch.dtype
    placement: Placement
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
        if self.own is None and mode == "streamed":
            raise ResourceError(
                f"{self.host.source}: its tensors are packed or converted on load, so donors "
                "cannot be streamed; both must fit into memory"
            )
        estimate = self._estimate_converted if self.own is None else partial(self._estimate, mode)
        return MemoryEstimate.total([estimate(device) for device in self.placement.devices])

    def settled(self, placement: Placement) -> "Sources":
        """The same checkpoints, to be loaded to where `placement` says."""
        return replace(
            self,
            placement=placement,
            own=None if self.own is None else self.own.on(placement),
            streamed={name: weights.on(placement) for name, weights in self.streamed.items()},
        )

    def num_bytes(self, mode: Mode) -> dict[str, int]:
        """What each tensor takes by live name, tied ones once, with those of donors in `mode`.

        For packed checkpoints, what they take once decoded.
        """
        if self.own is None:
            one = _live_bytes(empty(self.host, self.dtype))
            return {name: taken * (1 + len(self.donors)) for name, taken in one.items()}
        found = {name: self.own.nbytes(name) for name in _distinct(self.own)}
        if mode == "resident":
            for name, taken in self._donated().items():
                found[name] = found.get(name, 0) + taken
        return found

    def _donated(self) -> dict[str, int]:
        """What donors' tensors take that differ from the host's, by live name."""
        found: dict[str, int] = {}
        for donor, weights in self.streamed.items():
            for name in _distinct(weights):
                if name not in self.identical[donor]:
                    found[name] = found.get(name, 0) + weights.nbytes(name)
        return found

    def _estimate(self, mode: Mode, device: torch.device) -> MemoryEstimate:
        there = [
            self._on(device, self.num_bytes("streamed")),
            self._on(device, self._donated() if mode == "resident" else {}),
        ]
        return MemoryEstimate(
            mode=mode,
            device=str(device),
            host_bytes=sum(there[0]),
            donor_bytes=sum(there[1]),
            transient_bytes=max(there[0], default=0) if mode == "streamed" else 0,
            process_bytes=process_bytes() if device.type == "cpu" else 0,
        )

    def _estimate_converted(self, device: torch.device) -> MemoryEstimate:
        on_cpu = device.type == "cpu"
        live = _live_bytes(empty(self.host, self.dtype))
        there = sum(self._on(device, live))
        stored = round(self.host.num_bytes * there / sum(live.values()))
        # The CPU decodes packed weights into plain ones; a GPU may keep them packed.
        one = max(stored, there) if on_cpu else stored
        return MemoryEstimate(
            mode="resident",
            device=str(device),
            host_bytes=one,
            donor_bytes=one * len(self.donors),
            transient_bytes=stored * (1 + len(self.donors)) if on_cpu else 0,
            process_bytes=process_bytes() if on_cpu else 0,
        )

    def _on(self, device: torch.device, num_bytes: Mapping[str, int]) -> list[int]:
        place_of = self.placement.device_of
        return [taken for name, taken in num_bytes.items() if place_of(name) == device]


def prepare(host: str, donors: Mapping[str, str], *, dtype: str, experts: str) -> Sources:
    """Open all checkpoints, check that they fit together, and find what they share.

    Reads headers, and of each tensor as much as it takes to see that host and donor differ.
    They are placed on the CPU; `settle` or `Sources.settled` changes that.

    Raises:
        CheckpointError: a source cannot be opened.
        IncompatibleError: a donor does not fit the host.
    """
    checkpoint = open_checkpoint(host)
    opened = {name: open_checkpoint(source) for name, source in donors.items()}
    for name, donor in opened.items():
        check_family(checkpoint, name, donor)
    kind = resolved_dtype(dtype, checkpoint, opened)
    cpu = Placement.on("cpu")
    plain = all(is_plain(c) for c in (checkpoint, *opened.values()))
    model = skeleton(checkpoint, kind, experts) if plain else None
    if model is None or not is_stacked_only(model):
        return Sources(checkpoint, opened, kind, cpu, None, None, {}, {})
    own = stream(checkpoint, model)
    streamed, identical = {}, {}
    for name, donor in opened.items():
        try:
            streamed[name] = stream(donor, model)
        except IncompatibleError as error:
            raise IncompatibleError(f"donor {name!r} does not fit the host: {error}") from error
        weights = streamed[name]
        identical[name] = frozenset(n for n in own if own.equals(weights, n))
    return Sources(checkpoint, opened, kind, cpu, model, own, streamed, identical)


def settle(
    sources: Sources, wanted: torch.device | Mapping[str, torch.device] | str, budget: int | None
) -> Sources:
    """Place host and donors.

    Args:
        sources: from `prepare`.
        wanted: a device, one for each module, or the name of a map to be worked out.
        budget: bytes that each device may be filled with; None for what it has free.

    Raises:
        RecipeError: the map does not fit the model.
        ResourceError: the devices are too small for any mode.
    """
    if isinstance(wanted, torch.device):
        return sources.settled(Placement.on(wanted))
    model = sources.model or empty(sources.host, sources.dtype)
    if not isinstance(wanted, str):
        return sources.settled(place(model, wanted))
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    room = {
        device: free_bytes(device) if budget is None else budget
        for device in devices or [torch.device("cpu")]
    }
    modes: tuple[Mode, ...] = ("resident",) if sources.own is None else ("resident", "streamed")
    for mode in modes:
        sizes = sources.num_bytes(mode)
        beside = max(sizes.values()) if mode == "streamed" else 0
        left = {device: has - beside for device, has in room.items()}
        placed = spread(model, sizes, left, evenly=wanted != "sequential")
        if placed is not None:
            return sources.settled(placed)
    raise ResourceError(
        f"{', '.join(f'{size(n)} on {device}' for device, n in room.items())}: too little for the "
        f"{size(sum(sources.num_bytes(modes[-1]).values()))} of tensors of the "
        f"{'host alone' if modes[-1] == 'streamed' else 'host and its donors'}; use more devices"
    )


def estimate_memory(
    host: str,
    donors: Mapping[str, str],
    mode: Mode = "resident",
    *,
    device: str = "cpu",
    device_map: DeviceMap | None = None,
    dtype: str = "auto",
) -> MemoryEstimate:
    """Peak memory of `Host.load` and of switching, within 10 %, before anything is loaded.

    The devices of a map need not exist here.

    Raises:
        RecipeError: the device map does not fit the host.
        CheckpointError: a source cannot be opened.
        IncompatibleError: a donor does not fit the host.
        ResourceError: `mode` is not possible for these checkpoints.
    """
    where = torch.device(device) if device_map is None else parse_device_map(device_map)
    sources = prepare(host, donors, dtype=dtype, experts="eager")
    return settle(sources, where, None).estimate(mode)


def choose(sources: Sources, budget_bytes: int | None) -> MemoryEstimate:
    """The fastest mode that fits into `budget_bytes`, or into what the device has free.

    Raises:
        ResourceError: none does; the message says what would.
    """
    devices = {str(device): device for device in sources.placement.devices}
    free = {
        name: free_bytes(device) if budget_bytes is None else budget_bytes
        for name, device in devices.items()
    }
    resident = sources.estimate("resident")
    full = _too_large(resident, free)
    if full is None:
        return resident
    which = "free" if budget_bytes is None else "allowed"
    if sources.own is None:
        raise ResourceError(
            f"{size(free[full.device])} {which} on {full.device}, but {full}; its checkpoints are "
            f"packed or converted on load, so both must fit: allow {size(full.tensor_bytes)}"
        )
    streamed = sources.estimate("streamed")
    still = _too_large(streamed, free)
    if still is None:
        return streamed
    both = next(part for part in resident.by_device if part.device == still.device)
    half = " or dtype bfloat16" if sources.dtype.itemsize > 2 else ""
    raise ResourceError(
        f"{size(free[still.device])} {which} on {still.device}, but even with donors left on disk "
        f"the tensors take {size(still.tensor_bytes)} (both in memory: "
        f"{size(both.tensor_bytes)}); use a device with that much memory{half}"
    )


def _distinct(weights: StreamedWeights) -> list[str]:
    """One name for each tensor in memory: tied names count once on every device."""
    place_of = weights.placement.device_of
    names = {(reads, place_of(name)): name for name, reads in reversed(weights.reads.items())}
    return list(names.values())


def _live_bytes(model: PreTrainedModel) -> dict[str, int]:
    distinct = {slot.name: slot.tensor for slot in slots(model).values()}
    return {name: tensor.numel() * tensor.element_size() for name, tensor in distinct.items()}


def _too_large(estimate: MemoryEstimate, free: Mapping[str, int]) -> MemoryEstimate | None:
    """The first device's part that does not fit."""
    parts = (part for part in estimate.by_device if part.tensor_bytes > free[part.device])
    return next(parts, None)
