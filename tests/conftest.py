"""Switches on run-time shape and type checks for the whole package, and fixes the threads."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("moegraft", "beartype.beartype")

from pathlib import Path
from typing import Any

import pytest


def build_olmoe(path: Path, *, seed: int = 0, dtype: str = "float32", **sizes: Any) -> Path:
    """Save a tiny random OLMoE to `path` in the published layout; `sizes` override its config."""
    import torch
    from transformers import OlmoeConfig, OlmoeForCausalLM

    config = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 1,
        "eos_token_id": 0,
    } | sizes
    torch.manual_seed(seed)
    model = OlmoeForCausalLM(OlmoeConfig(**config))
    with torch.no_grad():
        for parameter in model.parameters():  # norms and routers differ between seeds too
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def make_olmoe():
    """The builder of tiny random OLMoE checkpoints: `make_olmoe(path, seed=0, **config)`."""
    return build_olmoe


@pytest.fixture(scope="session")
def olmoe_pair(tmp_path_factory) -> tuple[Path, Path]:
    """Two tiny OLMoE checkpoints of one architecture with different weights (read only)."""
    root = tmp_path_factory.mktemp("olmoe")
    return build_olmoe(root / "host", seed=1), build_olmoe(root / "donor", seed=2)


@pytest.fixture(scope="session")
def chat_pair(tmp_path_factory) -> tuple[Path, Path]:
    """Two tiny OLMoE checkpoints with one byte-level chat tokenizer (read only)."""
    from tiny_sweep import build_pair

    return build_pair(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="session")
def tiny_tasks(tmp_path_factory) -> Path:
    """A folder with the tasks `tiny_write` and `tiny_choose`, 24 items each (read only)."""
    from tiny_sweep import write_tasks

    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="session")
def merged(tmp_path_factory) -> Path:
    """A merged model of two branches and an anchor that reads bytes (read only)."""
    from tiny_bar import build_merged

    return build_merged(tmp_path_factory.mktemp("merged"))


@pytest.fixture(scope="session")
def chats(tmp_path_factory) -> dict[str, str]:
    """Files with chats of two domains, by name (read only)."""
    from tiny_bar import write_chats

    return write_chats(tmp_path_factory.mktemp("chats"))
