"""Small checkpoints made byte by byte, so that a test can make them wrong byte by byte."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = {
    "architectures": ["OlmoeForCausalLM"],
    "model_type": "olmoe",
    "hidden_size": 4,
    "intermediate_size": 2,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "vocab_size": 6,
    "tie_word_embeddings": False,
}


def make_file(file: Path, tensors: dict[str, Any], *, metadata: Any = None, pad: int = 0) -> Path:
    """Write safetensors by hand: name to (dtype, shape, bytes), in the given order."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        data += raw
    return make_raw(file, json.dumps(header).encode() + b" " * pad, data)


def make_raw(file: Path, header: bytes, data: bytes = b"") -> Path:
    """Write a length, then `header` and `data` as they are."""
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return file


def olmoe_tensors(seed: int = 0) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every published tensor of the model that CONFIG describes, in bf16, any bit pattern."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (6, 4)}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{part}_proj.weight": (4, 4) for part in "qkvo"}
        shapes |= {f"{prefix}self_attn.{part}_norm.weight": (4,) for part in "qk"}
        shapes[f"{prefix}mlp.gate.weight"] = (3, 4)
        for expert in range(3):
            for part, shape in (("gate", (2, 4)), ("up", (2, 4)), ("down", (4, 2))):
                shapes[f"{prefix}mlp.experts.{expert}.{part}_proj.weight"] = shape
        shapes |= {f"{prefix}{n}_layernorm.weight": (4,) for n in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (4,), "lm_head.weight": (6, 4)}
    return {name: ("BF16", s, rng.bytes(2 * int(np.prod(s)))) for name, s in sorted(shapes.items())}


def make_folder(folder: Path, *, seed: int = 0, num_shards: int = 1, config: Any = CONFIG) -> Path:
    """A whole small checkpoint: config.json, tokenizer stub, shards and index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    tensors = list(olmoe_tensors(seed).items())
    if num_shards == 1:
        make_file(folder / "model.safetensors", dict(tensors), metadata={"format": "pt"})
        return folder
    weight_map: dict[str, str] = {}
    size = -(-len(tensors) // num_shards)
    for index in range(num_shards):
        name = f"model-{index + 1:05}-of-{num_shards:05}.safetensors"
        part = dict(tensors[index * size : (index + 1) * size])
        make_file(folder / name, part, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    """Write the index with this weight map."""
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
