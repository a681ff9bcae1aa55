"""Build live models from checkpoints: streamed tensor by tensor, or by transformers itself."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.utils import logging as transformers_logging

from moegraft.checkpoint import Checkpoint
from moegraft.errors import CheckpointError, IncompatibleError, RecipeError
from moegraft.runtime.placement import Placement, connect
from moegraft.runtime.swap import slots
from moegraft.runtime.weights import DTYPES, StreamedWeights, Weights, same_bits

_PLAIN_CONVERSIONS = frozenset({"MergeModulelist", "Concatenate"})
"""What transformers does to published experts that stacking their bytes does as well."""


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers' bars (weights read, shards written) off a terminal that shows others."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def empty(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """The live model on the meta device: names, shapes and dtypes only.

    Raises:
        CheckpointError: transformers refuses config.json.
    """
    try:
        config = AutoConfig.from_pretrained(str(checkpoint.path), trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(_refusal(checkpoint, error)) from error


def skeleton(checkpoint: Checkpoint, dtype: torch.dtype, experts: str) -> PreTrainedModel:
    """The live model without its weights, in evaluation mode: buffers real, parameters a byte each.

    The parameters are views of one element, expanded to their shape, so that transformers itself
    does everything but read: buffers, tied names, dtypes, generation config.

    Raises:
        CheckpointError: transformers refuses config.json.
    """
    shape = empty(checkpoint, dtype)
    placeholders = {
        name: torch.zeros(1, dtype=tensor.dtype).expand(tensor.shape)
        for name, tensor in shape.state_dict().items()
    }
    try:
        with no_progress_bars():
            kind: Any = type(shape)
            model = kind.from_pretrained(
                None,
                config=shape.config,
                state_dict=placeholders,
                dtype=dtype,
                **_moe(checkpoint, experts),
            )
        if (checkpoint.path / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(str(checkpoint.path))
    except (OSError, ValueError) as error:
        raise CheckpointError(_refusal(checkpoint, error)) from error
    return model.requires_grad_(False)


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """What `dtype="auto"` means for transformers: config.json's, else the first tensor's.

    Raises:
        CheckpointError: neither says.
    """
    sizes = checkpoint.family.sizes(checkpoint.config)
    for config in (checkpoint.config, sizes):
        named = config.get("dtype") or config.get("torch_dtype")
        if isinstance(named, str) and isinstance(getattr(torch, named, None), torch.dtype):
            return getattr(torch, named)
    for header in checkpoint.tensors.values():
        if header.dtype in DTYPES:
            return DTYPES[header.dtype]
    raise CheckpointError(
        f"{checkpoint.source}: neither config.json nor the tensors say a dtype; pass one"
    )


def resolved_dtype(dtype: str, host: Checkpoint, donors: Mapping[str, Checkpoint]) -> torch.dtype:
    """The one dtype of a host and its donors.

    Raises:
        IncompatibleError: `auto`, and they are stored differently.
        CheckpointError: no such dtype.
    """
    if dtype != "auto":
        found = getattr(torch, dtype, None)
        if not isinstance(found, torch.dtype):
            raise CheckpointError(f"dtype {dtype!r}: expected float32, bfloat16, float16 or auto")
        return found
    ours = stored_dtype(host)
    for name, donor in donors.items():
        theirs = stored_dtype(donor)
        if theirs != ours:
            raise IncompatibleError(
                f"donor {name!r} is stored in {theirs}, the host in {ours}; "
                "pass a dtype to load both in it"
            )
    return ours


def check_family(host: Checkpoint, name: str, donor: Checkpoint) -> None:
    """Raise IncompatibleError when `donor` is of another family than `host`."""
    if donor.family.name != host.family.name:
        raise IncompatibleError(
            f"donor {name!r} ({donor.source}) is a {donor.family.name}, the host "
            f"({host.source}) a {host.family.name}; both must be of one family"
        )


def is_plain(checkpoint: Checkpoint) -> bool:
    """Whether all tensors are stored as plain numbers, so that nothing has to decode them."""
    quantised = checkpoint.config.get("quantization_config")
    return not quantised and all(t.dtype in DTYPES for t in checkpoint.tensors.values())


def is_stacked_only(model: PreTrainedModel) -> bool:
    """Whether the live module's tensors are the stored ones, renamed and stacked."""
    conversions = get_model_conversion_mapping(model)
    done = {type(op).__name__ for c in conversions for op in getattr(c, "operations", ())}
    return done <= _PLAIN_CONVERSIONS


def stream(checkpoint: Checkpoint, model: PreTrainedModel) -> StreamedWeights:
    """The tensors of `checkpoint` as `model` has them.

    Raises:
        IncompatibleError: they do not fit the model.
    """
    like = {name: slot.tensor for name, slot in slots(model).items()}
    ties = getattr(model, "all_tied_weights_keys", None) or model._tied_weights_keys or {}
    tied = {a: b for a, b in dict(ties).items() if a in like and b in like}
    return StreamedWeights(checkpoint, like, tied)


def fill(model: PreTrainedModel, weights: StreamedWeights) -> None:
    """Give every parameter and buffer of a skeleton its storage, where `weights` are placed."""
    for slot in {id(slot.tensor): slot for slot in slots(model).values()}.values():
        new = weights[slot.name]
        if isinstance(slot.tensor, nn.Parameter):
            new = nn.Parameter(new, requires_grad=False)
        for table, key in slot.places:
            table[key] = new
    for prefix, module in model.named_modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers[name]
            if buffer is not None:
                module._buffers[name] = buffer.to(weights.placement.device_of(prefix))
    connect(model, weights.placement)


def from_pretrained(
    checkpoint: Checkpoint, dtype: torch.dtype, experts: str, where: torch.device | Placement
) -> PreTrainedModel:
    """The live model, loaded by transformers: for checkpoints that are quantised or converted.

    Raises:
        CheckpointError: transformers refuses, or finds tensors missing.
        RecipeError: a part on the CPU and another on a GPU, which transformers would offload.
    """
    devices = Placement.on(where) if isinstance(where, torch.device) else where
    on_cpu = [device.type == "cpu" for device in devices.devices]
    if any(on_cpu) and not all(on_cpu):
        raise RecipeError(
            f"{checkpoint.source}: its tensors are packed or converted on load, so it cannot be "
            "partly on the CPU and partly on a GPU; name GPUs only"
        )
    try:
        with no_progress_bars():
            kind: Any = AutoModelForCausalLM
            model, info = kind.from_pretrained(
                str(checkpoint.path),
                dtype=dtype,
                device_map=None if all(on_cpu) else dict(devices.by_module),
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **_moe(checkpoint, experts),
            )
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(_refusal(checkpoint, error)) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{checkpoint.source}: {len(missing)} tensors are missing, {missing[0]} among them; "
            "the model would run on random weights"
        )
    return model.eval().requires_grad_(False)


def shared(own: Weights, other: Weights, donor: str) -> dict[str, Tensor]:
    """`other`, with the objects of `own` wherever the two agree bit for bit.

    Raises:
        IncompatibleError: shapes or dtypes differ.
    """
    held = {}
    for name, tensor in other.items():
        mine = own.get(name)
        if mine is not None and (mine.shape != tensor.shape or mine.dtype != tensor.dtype):
            raise IncompatibleError(
                f"donor {donor!r}: {name} is {list(tensor.shape)} {tensor.dtype}, the host's is "
                f"{list(mine.shape)} {mine.dtype}; sizes must agree"
            )
        held[name] = mine if mine is not None and same_bits(mine, tensor) else tensor
    return held


def resident(own: Weights, streamed: StreamedWeights, identical: frozenset[str]) -> Weights:
    """A donor's tensors in memory; those in `identical` are the host's own objects."""
    held: dict[str, Tensor] = {}
    seen: dict[Any, Tensor] = {}
    for name in streamed:
        if name in identical:
            held[name] = own[name]
            continue
        key = streamed.reads[name], streamed.placement.device_of(name)
        if key not in seen:
            seen[key] = nn.Parameter(streamed[name], requires_grad=False)
        held[name] = seen[key]
    return held


def _moe(checkpoint: Checkpoint, experts: str) -> dict[str, str]:
    return {"experts_implementation": experts} if checkpoint.family.is_moe else {}


def _refusal(checkpoint: Checkpoint, error: Exception) -> str:
    said = next(iter(str(error).strip().splitlines()), repr(error))
    return f"{checkpoint.source}: transformers cannot load it: {said}"
