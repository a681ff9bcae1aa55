"""Build live models from checkpoints, and hold a donor's tensors under the host's live names."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from moegraft.checkpoint import Checkpoint, open_checkpoint
from moegraft.errors import CheckpointError, IncompatibleError

Weights = Mapping[str, Tensor]
"""Tensors by live name."""


def open_source(source: str) -> Checkpoint:
    """Open a checkpoint by its headers."""
    try:
        return open_checkpoint(source)
    except NotImplementedError:
        import json
        from pathlib import Path

        from moegraft.families import FAMILIES

        config = json.loads((Path(source) / "config.json").read_text())
        return Checkpoint(source, Path(source), config, FAMILIES[config["model_type"]], {})


def load_resident(
    host: Checkpoint,
    donors: Mapping[str, Checkpoint],
    *,
    device: torch.device,
    dtype: str,
    experts_implementation: str,
) -> tuple[PreTrainedModel, dict[str, Weights]]:
    """Load the host as a live model, and every donor's tensors beside it.

    Returns:
        The host model and, by donor, tensors by live name; those that equal the host's bit for bit
        are the host's own objects.

    Raises:
        CheckpointError: transformers refuses a checkpoint, or finds tensors missing.
        IncompatibleError: a donor does not fit the host.
    """
    model = _from_pretrained(host, device, dtype, experts_implementation)
    own = model.state_dict(keep_vars=True)
    held = {}
    for name, checkpoint in donors.items():
        _check_family(host, name, checkpoint)
        other = _from_pretrained(checkpoint, device, dtype, experts_implementation)
        held[name] = _shared(own, other.state_dict(keep_vars=True), name)
    return model, held


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit (-0.0 and NaN payloads included)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.detach().view(kind), b.detach().view(kind))


def _check_family(host: Checkpoint, name: str, donor: Checkpoint) -> None:
    if donor.family.name != host.family.name:
        raise IncompatibleError(
            f"donor {name!r} ({donor.source}) is a {donor.family.name}, the host "
            f"({host.source}) a {host.family.name}; both must be of one family"
        )


def _shared(own: Weights, other: Weights, donor: str) -> Weights:
    held = {}
    for name, tensor in other.items():
        mine = own.get(name)
        if mine is not None and (mine.shape != tensor.shape or mine.dtype != tensor.dtype):
            raise IncompatibleError(
                f"donor {donor!r}: {name} is {list(tensor.shape)} {tensor.dtype}, the host's is "
                f"{list(mine.shape)} {mine.dtype}; sizes must agree, and dtype= casts both"
            )
        held[name] = mine if mine is not None and same_bits(mine, tensor) else tensor
    return held


def _from_pretrained(
    checkpoint: Checkpoint, device: torch.device, dtype: str, experts_implementation: str
) -> PreTrainedModel:
    moe: dict[str, Any] = (
        {"experts_implementation": experts_implementation} if checkpoint.family.is_moe else {}
    )
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(checkpoint.path),
            dtype=dtype,
            device_map={"": device} if device.type != "cpu" else None,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **moe,
        )
    except (OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"{checkpoint.source}: transformers cannot load it: {said}"
        ) from error
    finally:
        if bar:
            transformers_logging.enable_progress_bar()
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{checkpoint.source}: {len(missing)} tensors are missing, {missing[0]} among them; "
            "the model would run on random weights"
        )
    return model.eval().requires_grad_(False)
