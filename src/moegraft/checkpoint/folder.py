"""What a checkpoint folder holds: config.json, shards and index, checked against each other."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from moegraft.checkpoint.header import TensorHeader, read_header
from moegraft.errors import CheckpointError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that make a tokenizer, in any of the forms that transformers reads."""


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from `file`. Raises CheckpointError with one line for everything else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file; is this a checkpoint folder?") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise CheckpointError(f"{file}: not valid JSON ({line})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(found).__name__}")
    return found


def index_files(folder: Path) -> tuple[str, ...]:
    """Names of the shards in `folder`, as from_pretrained would choose them.

    `model.safetensors` wins over an index, as in transformers. Names are checked to stay inside
    the folder; whether the files exist is left to `read_tensors`.
    """
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return (SINGLE,)
    return tuple(sorted(set(_weight_map(folder / INDEX).values())))


def read_tensors(folder: Path) -> dict[str, TensorHeader]:
    """Headers of all tensors in `folder`, by file name and position, agreeing with the index.

    Raises:
        CheckpointError: no safetensors, a missing shard, one tensor in two files, a tensor that
            the index places elsewhere or does not know.
    """
    files = index_files(folder)
    if files == (SINGLE,) and not (folder / SINGLE).is_file():
        raise CheckpointError(_nothing_to_read(folder))
    tensors: dict[str, TensorHeader] = {}
    for name in files:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / INDEX}: names shard {name!r}, which does not exist")
        for tensor in read_header(folder / name).values():
            first = tensors.setdefault(tensor.name, tensor)
            if first is not tensor:
                raise CheckpointError(
                    f"{folder}: tensor {tensor.name!r} is in {first.file.name} and in {name}"
                )
    if files != (SINGLE,) or not (folder / SINGLE).is_file():
        _check_index(folder, _weight_map(folder / INDEX), tensors)
    return tensors


def _weight_map(file: Path) -> dict[str, str]:
    found = read_json(file).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{file}: weight_map is missing or empty")
    for tensor, shard in found.items():
        if not isinstance(shard, str) or not shard.isprintable() or not shard:
            raise CheckpointError(f"{file}: tensor {tensor!r} has no file name: {shard!r}")
        path = PurePosixPath(shard)
        if path.is_absolute() or ".." in path.parts or "\\" in shard:
            raise CheckpointError(f"{file}: shard {shard!r} lies outside the checkpoint's folder")
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{file}: shard {shard!r} is no safetensors file")
    return found


def _check_index(
    folder: Path, weight_map: Mapping[str, str], tensors: Mapping[str, TensorHeader]
) -> None:
    index = folder / INDEX
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file != folder / shard:
            where = f"it is in {tensors[name].file.name}" if name in tensors else "no shard has it"
            raise CheckpointError(f"{index}: places tensor {name!r} in {shard}, but {where}")
    extra = [name for name in tensors if name not in weight_map]
    if extra:
        raise CheckpointError(
            f"{index}: does not list {len(extra)} tensors of its shards, "
            f"the first is {extra[0]!r} in {tensors[extra[0]].file.name}"
        )


def _nothing_to_read(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder"
    names = sorted(path.name for path in folder.iterdir())
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        return (
            f"{folder}: holds only pickled weights, which can run code and are never read; "
            "convert them to safetensors"
        )
    if "adapter_model.safetensors" in names:
        return f"{folder}: holds an adapter; merge it into its model first"
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return f"{folder}: has {others[0]} but neither {SINGLE} nor {INDEX}"
    return f"{folder}: neither {SINGLE} nor {INDEX} found"
