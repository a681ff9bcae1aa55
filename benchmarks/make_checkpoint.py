"""Make random checkpoints with OLMoE-1B-7B's real shapes and names, without torch.

    python benchmarks/make_checkpoint.py OUT --size full --seed 1     # 13.84 GB, 3,219 tensors
    python benchmarks/make_checkpoint.py OUT --size 2gb
    python benchmarks/make_checkpoint.py OUT --many                   # 10 MB, 18,867 tensors

Files are laid out as the Hub has them: shards filled up to 5 GB in module order, tensors in
lexicographic order inside a shard, a header that ends at any multiple of 8. Weights are random
bf16 between 1/128 and 1/32 of either sign, norms are near 1, so that the models run.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from moegraft.checkpoint.header import tensor_bytes
from moegraft.checkpoint.writer import Entry, Produced, plan_shards, staged_output, write_shards

SIZES = {
    "full": {"hidden": 2048, "ffn": 1024, "vocab": 50304, "heads": 16},
    "3.5gb": {"hidden": 1024, "ffn": 512, "vocab": 50304, "heads": 16},
    "2gb": {"hidden": 1024, "ffn": 256, "vocab": 50304, "heads": 16},
    "tiny": {"hidden": 16, "ffn": 16, "vocab": 512, "heads": 2},
}
"""All have 16 layers of 64 experts, 3,219 tensors."""

CLASSES = {"olmoe": "OlmoeForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}


def make_checkpoint(
    out: Path,
    *,
    size: str = "full",
    many: bool = False,
    family: str = "olmoe",
    seed: int = 0,
    max_shard_bytes: int = 5_000_000_000,
) -> int:
    """Write the checkpoint to `out` and return its number of tensors."""
    config = make_config("tiny" if many else size, many=many, family=family)
    rng = np.random.Generator(np.random.SFC64(seed))
    entries = [entry(name, shape, rng) for name, shape in tensor_shapes(config)]
    shards = {
        name: sorted(group, key=lambda e: e.name)
        for name, group in plan_shards(entries, max_shard_bytes=max_shard_bytes).items()
    }
    with staged_output(out, needed_bytes=sum(e.nbytes for e in entries)) as folder:
        write_shards(folder, shards)
        write_small_files(folder, config)
    return len(entries)


def make_config(size: str, *, many: bool, family: str) -> dict:
    """config.json of the checkpoint."""
    sizes = SIZES[size]
    config = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": sizes["hidden"],
        "intermediate_size": sizes["ffn"],
        "max_position_embeddings": 4096,
        "norm_topk_prob": False,
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["heads"],
        "num_experts": 128 if many else 64,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48 if many else 16,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "router_aux_loss_coef": 0.01,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": sizes["vocab"],
    }
    if family == "qwen3_moe":
        head_dim = sizes["hidden"] // sizes["heads"]
        config |= {"moe_intermediate_size": sizes["ffn"], "head_dim": head_dim}
        config |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
    return config


def tensor_shapes(config: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Published names and shapes, in the order of the module."""
    hidden, ffn, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    norm = config.get("head_dim", hidden)
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for part in "qkvo":
            yield f"{prefix}self_attn.{part}_proj.weight", (hidden, hidden)
        for part in "qk":
            yield f"{prefix}self_attn.{part}_norm.weight", (norm,)
        yield f"{prefix}mlp.gate.weight", (config["num_experts"], hidden)
        for expert in range(config["num_experts"]):
            yield f"{prefix}mlp.experts.{expert}.gate_proj.weight", (ffn, hidden)
            yield f"{prefix}mlp.experts.{expert}.up_proj.weight", (ffn, hidden)
            yield f"{prefix}mlp.experts.{expert}.down_proj.weight", (hidden, ffn)
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def entry(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Entry:
    """One random bf16 tensor, made when it is written."""
    nbytes = tensor_bytes("BF16", shape)
    return Entry(name, "BF16", shape, (Produced(nbytes, random_bf16(nbytes, "norm" in name, rng)),))


def random_bf16(nbytes: int, near_one: bool, rng: np.random.Generator) -> Callable[[], np.ndarray]:
    """A function that draws `nbytes` of bf16; the bit masks fix the range of the exponent."""
    keep, fixed = (0x000F, 0x3F80) if near_one else (0x80FF, 0x3C00)

    def produce() -> np.ndarray:
        words = rng.integers(0, 1 << 64, -(-nbytes // 8), dtype=np.uint64).view(np.uint16)
        words = words[: nbytes // 2]
        words &= np.uint16(keep)
        words |= np.uint16(fixed)
        return words

    return produce


def write_small_files(folder: Path, config: dict) -> None:
    """A byte-level tokenizer, a chat template, generation_config.json and, last, config.json."""
    special = {"<|endoftext|>": 0, "<|padding|>": 1}
    vocab = special | {char: i for i, char in enumerate(byte_characters(), start=2)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": text, "special": True, "single_word": False, "lstrip": False}
            | {"rstrip": False, "normalized": False}
            for text, i in special.items()
        ],
        "pre_tokenizer": byte_level | {"use_regex": False},
        "decoder": byte_level | {"use_regex": False},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    write_json(folder / "tokenizer.json", tokenizer)
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|padding|>",
        "model_max_length": config["max_position_embeddings"],
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    write_json(folder / "generation_config.json", {"eos_token_id": 0, "pad_token_id": 1})
    write_json(folder / "config.json", config)


def byte_characters() -> list[str]:
    """The 256 characters by which byte-level BPE writes bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(rest))]


def write_json(file: Path, content: dict) -> None:
    """Write `content` as indented JSON."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--many", action="store_true", help="48 layers of 128 experts, 10 MB")
    parser.add_argument("--family", choices=CLASSES, default="olmoe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-shard-bytes", type=int, default=5_000_000_000)
    given = vars(parser.parse_args())
    start = time.perf_counter()
    num_tensors = make_checkpoint(given.pop("out"), **given)
    print(f"{num_tensors} tensors in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
