"""A host model held in memory with its donors: load once, then switch configuration in place."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moegraft.checkpoint import Checkpoint
from moegraft.errors import IncompatibleError, RecipeError
from moegraft.runtime.exchange import exchanged
from moegraft.runtime.fit import Sources, choose, prepare, settle
from moegraft.runtime.identity import component_hashes, config_differences
from moegraft.runtime.load import fill, from_pretrained, resident, shared
from moegraft.runtime.memory import MemoryEstimate, Mode
from moegraft.runtime.placement import (
    DeviceMap,
    Placement,
    check_present,
    find_device,
    parse_device_map,
)
from moegraft.runtime.swap import Patch, slots, swapped
from moegraft.runtime.tokens import (
    eos_ids,
    id_maps_differ,
    load_tokenizer,
    tokenizer_differences,
)
from moegraft.runtime.weights import StreamedWeights, Weights

_log = logging.getLogger(__name__)

HOST = "host"
"""How a host calls itself where donors are called by name."""


@dataclass
class Host:
    """A live host model, its donors' tensors, and what the two need to be compared.

    Build one with `Host.load`. All models are in evaluation mode with `requires_grad` off.

    Attributes:
        model: the live host.
        tokenizer: the host's; None when its checkpoint has none.
        checkpoint: the host's checkpoint.
        donor_checkpoints: by donor name.
        eos_ids: every id at which host or a donor stops.
        tokenizer_differences: one sentence each, empty when all tokenizers agree.
        id_maps_differ: by donor name, whether ordinary text gets other ids from its tokenizer.
        donor_tokenizers: by donor name; None where a checkpoint has none.
        memory: the pre-flight's estimate, and with it the mode: `resident`, or `streamed` where
            memory holds one model only.
        placement: where every part of the model is; a donor's tensors are beside the host's.
    """

    model: PreTrainedModel
    tokenizer: Any  # transformers types its methods only in part
    checkpoint: Checkpoint
    donor_checkpoints: dict[str, Checkpoint]
    eos_ids: frozenset[int]
    tokenizer_differences: list[str]
    id_maps_differ: dict[str, bool]
    donor_tokenizers: dict[str, PreTrainedTokenizerBase | None]
    memory: MemoryEstimate
    placement: Placement
    _donors: Mapping[str, Weights] = field(repr=False)
    _identical: Mapping[str, frozenset[str]] = field(repr=False)
    _on_disk: StreamedWeights | None = field(repr=False)
    _lazy: dict[Any, Callable[[], Tensor]] = field(default_factory=dict, repr=False)
    _hashes: dict[str, dict[tuple[str, int | None], str]] = field(default_factory=dict, repr=False)

    @classmethod
    def load(
        cls,
        host: str,
        donors: Mapping[str, str],
        *,
        device: str = "auto",
        device_map: DeviceMap | None = None,
        dtype: str = "auto",
        experts_implementation: str | None = None,
        memory_budget_bytes: int | None = None,
    ) -> "Host":
        """Load `host` and every donor once.

        Tensors that a donor shares with the host bit for bit are held once.

        Args:
            host: folder, `org/name[@revision]` or `nano:NAME`.
            donors: checkpoints by the name that recipes use.
            device: a torch device, or `auto` for CUDA where there is one, else the CPU.
            device_map: in place of `device`, for models that are larger than one: `auto`,
                `balanced`, `sequential`, or a device for each module. Nothing is offloaded.
            dtype: `float32`, `bfloat16`, `float16`, or `auto` for the host's stored dtype.
            experts_implementation: as in transformers; by default `eager` on the CPU and
                `grouped_mm` on CUDA, each the fastest there.
            memory_budget_bytes: what host and donors may take on each device.

        Raises:
            CheckpointError: a source cannot be opened or loaded.
            IncompatibleError: a donor differs from the host in family, shape or stored dtype.
            RecipeError: a donor is called `host`, no such GPU, or the device map does not fit.
            ResourceError: the budget is too small for any mode.
        """
        if HOST in donors:
            raise RecipeError(f"a donor cannot be called {HOST!r}: that name means the host itself")
        where = _where(device, device_map)
        implementation = experts_implementation or ("grouped_mm" if _on_gpu(where) else "eager")
        sources = prepare(host, donors, dtype=dtype, experts=implementation)
        sources = settle(sources, where, memory_budget_bytes)
        check_present(sources.placement.devices)
        estimate = choose(sources, memory_budget_bytes)
        _log.info("%s", estimate)
        checkpoint, opened = sources.host, dict(sources.donors)
        model, held = _load(sources, estimate.mode, implementation)
        tokenizer = load_tokenizer(checkpoint)
        tokenizers = {name: load_tokenizer(c) for name, c in opened.items()}
        stops = [eos_ids(checkpoint, tokenizer)]
        stops += [eos_ids(c, tokenizers[name]) for name, c in opened.items()]
        said = [
            sentence
            for name, other in tokenizers.items()
            for sentence in tokenizer_differences((HOST, name), tokenizer, other)
        ]
        return cls(
            model=model,
            tokenizer=tokenizer,
            checkpoint=checkpoint,
            donor_checkpoints=opened,
            eos_ids=frozenset().union(*stops),
            tokenizer_differences=said,
            id_maps_differ={
                name: tokenizer is not None
                and other is not None
                and id_maps_differ(tokenizer, other)
                for name, other in tokenizers.items()
            },
            donor_tokenizers=tokenizers,
            memory=estimate,
            placement=sources.placement,
            _donors=held,
            _identical=sources.identical,
            _on_disk=sources.own if estimate.mode == "streamed" else None,
        )

    @property
    def device(self) -> torch.device:
        """Where token ids go: that of the model, or of its embedding where it is on several."""
        return next(iter(self._own.values())).device

    @property
    def device_map(self) -> dict[str, str] | None:
        """The device of each part of the model; None where it is on one as a whole."""
        placed = {module: str(device) for module, device in self.placement.by_module.items()}
        return None if "" in placed else placed

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices that hold a part of the model."""
        return tuple(dict.fromkeys(tensor.device for tensor in self._own.values()))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights (of the embedding, where a family mixes dtypes)."""
        return next(iter(self._own.values())).dtype

    @cached_property
    def _own(self) -> dict[str, Tensor]:
        return {name: slot.tensor for name, slot in slots(self.model).items()}

    def parameter(self, live_name: str) -> Tensor:
        """The host's own tensor; in the resident mode also while another stands in its place.

        Raises:
            IncompatibleError: no such tensor.
        """
        return _named(self._own, live_name, HOST)

    def parameter_names(self) -> tuple[str, ...]:
        """Live names of all parameters and persistent buffers, both names of a tied one."""
        return tuple(self._own)

    def donor_parameter(self, donor: str, live_name: str) -> Tensor:
        """A donor's tensor in the host's dtype, on the device of the host's own.

        It is the host's own object where both agree bit for bit (resident mode); in the streamed
        mode every call reads it anew. Never write into it.

        Raises:
            IncompatibleError: the donor has no such tensor.
            RecipeError: no such donor.
        """
        return _named(self._held(donor), live_name, donor)

    def donor_value(self, donor: str, live_name: str) -> Tensor | Callable[[], Tensor]:
        """A donor's tensor as the value of a `Patch`: itself, or read only when swapped in.

        Patches made of it keep the streamed mode within its memory: use `donor_parameter` only
        inside a function that is a patch's value. The same tensor gives the same object, also
        under both names of a tied one.

        Raises:
            IncompatibleError: the donor has no such tensor.
            RecipeError: no such donor.
        """
        held = self._held(donor)
        if live_name in self._identical.get(donor, ()):
            return self.parameter(live_name)
        if not isinstance(held, StreamedWeights) or live_name not in held:
            return self.donor_parameter(donor, live_name)
        key = (donor, held.reads[live_name], self.placement.device_of(live_name))
        return self._lazy.setdefault(key, partial(held.__getitem__, live_name))

    def donor_config(self, donor: str) -> Mapping[str, Any]:
        """config.json of `donor`. Raises RecipeError when there is no such donor."""
        self._held(donor)
        return self.donor_checkpoints[donor].config

    @contextmanager
    def with_patches(self, patches: Sequence[Patch]) -> Iterator[PreTrainedModel]:
        """Run a block with `patches` applied to `model`, then restore the host.

        See `runtime.swapped`, and for the streamed mode `runtime.exchange.exchanged`.

        Raises:
            IncompatibleError: no such tensor, or shape, dtype or device differ.
            RecipeError: two patches for one place, or a swap is open already.
        """
        if self._on_disk is None:
            with swapped(self.model, patches):
                yield self.model
        else:
            with exchanged(self.model, patches, self._on_disk):
                yield self.model

    def donor_patches(self, donor: str) -> list[Patch]:
        """Patches that turn the live host into `donor` itself: bit-identical logits.

        Raises:
            IncompatibleError: the two configs differ where weights cannot make up for it.
            RecipeError: no such donor.
        """
        obstacles = self.donor_obstacles(donor)
        if obstacles:
            raise IncompatibleError(
                f"donor {donor!r} cannot run inside the host: {'; '.join(obstacles)}; "
                "evaluate it as a host of its own"
            )
        return [Patch(name, self.donor_value(donor, name)) for name in self.parameter_names()]

    def donor_obstacles(self, donor: str) -> list[str]:
        """Config fields in which `donor` computes differently from the host, one phrase each.

        Transfers of single components stay possible: they run under the host's config.
        """
        self._held(donor)
        return config_differences(self.checkpoint, self.donor_checkpoints[donor])

    def component_hashes(self, source: str) -> dict[tuple[str, int | None], str]:
        """sha256 of the live bytes of each component in each layer, computed once.

        Independent of device, memory mode and layout on disk; a dtype given at load is part of it.

        Args:
            source: `host` or a donor's name.

        Returns:
            Hex digests by (component, layer); layer is None for tensors outside the layers.

        Raises:
            RecipeError: no such donor.
        """
        if source not in self._hashes:
            own = self._own if self._on_disk is None else self._on_disk
            held = own if source == HOST else self._held(source)
            self._hashes[source] = component_hashes(self.checkpoint, held)
        return self._hashes[source]

    def _held(self, donor: str) -> Weights:
        if donor not in self._donors:
            known = ", ".join(map(repr, self._donors)) or "none"
            raise RecipeError(f"no donor is called {donor!r}; the host was loaded with {known}")
        return self._donors[donor]


def _load(sources: Sources, mode: Mode, experts: str) -> tuple[PreTrainedModel, dict[str, Weights]]:
    if sources.own is None or sources.model is None:
        args = (sources.dtype, experts, sources.placement)
        model = from_pretrained(sources.host, *args)
        own = model.state_dict(keep_vars=True)
        return model, {
            name: shared(own, from_pretrained(donor, *args).state_dict(keep_vars=True), name)
            for name, donor in sources.donors.items()
        }
    fill(sources.model, sources.own)
    if mode == "streamed":
        return sources.model, dict(sources.streamed)
    own = {name: slot.tensor for name, slot in slots(sources.model).items()}
    return sources.model, {
        name: resident(own, weights, sources.identical[name])
        for name, weights in sources.streamed.items()
    }


def _where(
    device: str, device_map: DeviceMap | None
) -> torch.device | dict[str, torch.device] | str:
    if device_map is None:
        return find_device(device)
    if device != "auto":
        raise RecipeError(f"device {device!r} and a device map: give one of them")
    return parse_device_map(device_map)


def _on_gpu(where: torch.device | dict[str, torch.device] | str) -> bool:
    if isinstance(where, str):
        return torch.cuda.is_available()
    devices = [where] if isinstance(where, torch.device) else where.values()
    return all(device.type == "cuda" for device in devices)


def _named(held: Mapping[str, Tensor], name: str, owner: str) -> Tensor:
    if name not in held:
        raise IncompatibleError(f"{owner} has no tensor {name!r} (live names, as in state_dict())")
    return held[name]
