"""What one checkpoint holds: components with sizes and dtypes, family, layout, tokenizer."""

from collections import defaultdict
from typing import Any

from moegraft.checkpoint import Checkpoint
from moegraft.transfer.scope import spell
from moegraft.transfer.vocabulary import read_tokenizer


def summarize_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Headers and tokenizer of `checkpoint` as plain data; no tensor is read.

    Returns:
        `source family architectures layout revision num_layers num_experts top_k tied_embeddings
        tensors bytes files tokenizer unknown`, and `components`: one row per component with
        `component tensors parameters bytes dtypes layers`. A quantised weight counts its stored
        elements.
    """
    config = checkpoint.config
    rows = defaultdict(list)
    for name, tensor in checkpoint.tensors.items():
        if name not in checkpoint.unknown:
            place = checkpoint.family.place(name)
            rows[place.component].append((place.layer, tensor))
    return {
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "family": checkpoint.family.name,
        "architectures": list(config.get("architectures") or ()),
        "layout": checkpoint.layout,
        "num_layers": checkpoint.num_layers,
        "num_experts": checkpoint.num_experts,
        "top_k": checkpoint.family.top_k(config),
        "tied_embeddings": checkpoint.tied_embeddings,
        "tensors": len(checkpoint.tensors),
        "bytes": checkpoint.num_bytes,
        "files": [file.relative_to(checkpoint.path).as_posix() for file in checkpoint.files],
        "components": [_row(component, found) for component, found in rows.items()],
        "tokenizer": read_tokenizer(checkpoint).summary(),
        "unknown": list(checkpoint.unknown),
    }


def _row(component: str, found: list[tuple[int | None, Any]]) -> dict[str, Any]:
    tensors = [tensor for _, tensor in found]
    parameters = 0
    for tensor in tensors:
        count = 1
        for length in tensor.shape:
            count *= length
        parameters += count
    return {
        "component": component,
        "tensors": len(tensors),
        "parameters": parameters,
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "dtypes": sorted({tensor.dtype for tensor in tensors}),
        "layers": spell(sorted({layer for layer, _ in found if layer is not None})),
    }
