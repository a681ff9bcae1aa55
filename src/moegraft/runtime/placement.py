"""Which device each part of a live model is on: one for all, or a device map over its modules."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moegraft.errors import RecipeError
from moegraft.runtime.swap import slots

DeviceMap = str | Mapping[str, str | int | torch.device]
"""`auto`, `balanced` or `sequential`, or a device for each module, by name or by a parent's name.

As in transformers, except that nothing is offloaded: what would not fit leaves its donors on disk.
"""

NAMED = ("auto", "balanced", "sequential")
"""Maps that are worked out: `auto` and `balanced` load devices alike, `sequential` fills them."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A device for every part of a model."""

    by_module: Mapping[str, torch.device]
    """Modules in the model's order, none inside another; `""` is the whole model."""

    @classmethod
    def on(cls, device: torch.device | str) -> "Placement":
        """Everything on one device."""
        return cls({"": torch.device(device)})

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices, in the order in which the model reaches them."""
        return tuple(dict.fromkeys(self.by_module.values()))

    def device_of(self, name: str) -> torch.device:
        """Where a module or tensor is."""
        while name not in self.by_module:
            assert name, "a placement covers the whole model"
            name = name.rpartition(".")[0]
        return self.by_module[name]


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one, else the CPU.

    Raises:
        RecipeError: no such device, or none that is here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    expected = "expected auto, cpu, cuda or cuda:N"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RecipeError(f"device {name!r}: {expected}") from None
    if device.type in ("cpu", "cuda"):
        check_present([device])
        return device
    try:
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):  # not built in, none there, or no values
        raise RecipeError(f"device {name!r}: cannot be computed on here; {expected}") from None
    return device


def check_present(devices: Sequence[torch.device]) -> None:
    """Raises RecipeError for a GPU that is not here."""
    for device in devices:
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise RecipeError(f"no {device} here: {torch.cuda.device_count()} GPUs are visible")


def parse_device_map(given: DeviceMap) -> str | dict[str, torch.device]:
    """The name of a map, or its devices.

    Raises:
        RecipeError: no such name, or something that is not a device.
    """
    if isinstance(given, str):
        if given not in NAMED:
            raise RecipeError(
                f"device map {given!r}: expected {', '.join(NAMED)}, or a device for each module"
            )
        return given
    return {module: _device(module, device) for module, device in given.items()}


def place(model: nn.Module, wanted: Mapping[str, torch.device]) -> Placement:
    """A device for every block of `model`, as `wanted` says for it or for a module around it.

    Raises:
        RecipeError: a module that does not exist or is only a part of a block, a block that nothing
            is said about, or a tied tensor on two devices.
    """
    known = blocks(model)
    for name in wanted:
        if not any(block == name or block.startswith(f"{name}.") or not name for block in known):
            raise RecipeError(_no_block(name, known))
    devices = {}
    for block in known:
        parents = [block.rsplit(".", cut)[0] for cut in range(block.count(".") + 1)]
        found = next((name for name in (*parents, "") if name in wanted), None)
        if found is None:
            raise RecipeError(f"device map: nothing says where {block} is")
        devices[block] = wanted[found]
    for first, other in _tied(model, known):
        if devices[first] != devices[other]:
            raise RecipeError(
                f"device map: {first} and {other} share a tensor, so they cannot be on "
                f"{devices[first]} and {devices[other]}"
            )
    return Placement(devices)


def spread(
    model: nn.Module,
    num_bytes: Mapping[str, int],
    room: Mapping[torch.device, int],
    *,
    evenly: bool,
) -> Placement | None:
    """Blocks of `model` on devices one after another, in the model's order.

    Args:
        model: may be without weights.
        num_bytes: what each tensor takes, by live name; tied tensors once.
        room: bytes that each device has, in the order in which they are filled.
        evenly: keep the fullest device as empty as possible, instead of filling the first.

    Returns:
        None where it does not fit.
    """
    known = blocks(model)
    sizes = dict.fromkeys(known, 0)
    for name, size in num_bytes.items():
        sizes[_block_of(name, sizes)] += size
    low, high = 0, max(sum(sizes.values()), 1)
    placed = _filled(sizes, room, high)
    if placed is None:
        return None
    while evenly and high - low > 1:  # the smallest limit on every device that still works
        limit = (low + high) // 2
        tried = _filled(sizes, room, limit)
        low, high, placed = (low, limit, tried) if tried else (limit, high, placed)
    for first, other in _tied(model, known):
        placed[other] = placed[first]
    return Placement(placed)


def blocks(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that stay on one device: layers, embedding, norm, head.

    Every parameter and buffer lies in exactly one of them.
    """
    whole = frozenset(getattr(model, "_no_split_modules", None) or ())

    def within(module: nn.Module, name: str) -> Iterator[str]:
        children = dict(module.named_children())
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if type(module).__name__ in whole or not children or own:
            yield name
            return
        for child, inner in children.items():
            yield from within(inner, f"{name}.{child}" if name else child)

    return tuple(within(model, ""))


def connect(model: nn.Module, placement: Placement) -> None:
    """Let every block bring what it is called with to its own device.

    Weights are found where they are and never move, unlike with offloading; gradients flow back
    through the moves. Nothing happens on one device.
    """
    if len(placement.devices) > 1:
        for block, device in placement.by_module.items():
            bring = partial(_bring, device)
            model.get_submodule(block).register_forward_pre_hook(bring, with_kwargs=True)


def _bring(
    device: torch.device, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return _moved(args, device), _moved(kwargs, device)


def _moved(value: Any, device: torch.device) -> Any:
    """`value` with the tensors in it on `device`; a cache looks after itself."""
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(_moved(one, device) for one in value)
    if type(value) is dict:
        return {key: _moved(one, device) for key, one in value.items()}
    return value


def _filled(
    sizes: Mapping[str, int], room: Mapping[torch.device, int], limit: int
) -> dict[str, torch.device] | None:
    """Blocks on devices in order, at most `limit` bytes on each; None where they do not fit."""
    waiting = iter(room.items())
    device, left = next(waiting)
    left = min(left, limit)
    placed = {}
    for block, size in sizes.items():
        while size > left:
            following = next(waiting, None)
            if following is None:
                return None
            device, left = following[0], min(following[1], limit)
        placed[block] = device
        left -= size
    return placed


def _block_of(name: str, known: Mapping[str, int]) -> str:
    while name not in known:
        name = name.rpartition(".")[0]
    return name


def _tied(model: nn.Module, known: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of blocks that share a tensor."""
    names = dict.fromkeys(known, 0)
    for name, slot in slots(model).items():
        first, other = _block_of(slot.name, names), _block_of(name, names)
        if first != other:
            yield first, other


def _device(module: str, device: str | int | torch.device) -> torch.device:
    if device == "disk":
        raise RecipeError(
            f"device map: {module or 'the model'} on disk: nothing is offloaded there; a memory "
            "budget leaves donors on disk instead"
        )
    try:
        return torch.device("cuda:0" if device == "cuda" else _named(device))
    except RuntimeError:
        raise RecipeError(
            f"device map: {module or 'the model'} on {device!r}, which is no device"
        ) from None


def _named(device: str | int | torch.device) -> str | torch.device:
    return f"cuda:{device}" if isinstance(device, int) else device


def _no_block(name: str, known: Sequence[str]) -> str:
    around = next((block for block in known if name.startswith(f"{block}.")), None)
    if around is not None:
        return f"device map: {name} is a part of {around}, which stays on one device"
    near = get_close_matches(name, known, n=1, cutoff=0.3)
    hint = f"; the nearest is {near[0]!r}" if near else ""
    return f"device map: the model has no module {name!r}{hint}"
