"""Tiny dense anchors and pretrained models of every family that can be branched."""

from pathlib import Path

import pytest

from tiny_bar import word_tokenizer
from tiny_families import build_tiny

DENSE = {
    "olmo2": {},
    "llama": {"attention_bias": False, "mlp_bias": False, "rms_norm_eps": 1e-5},
    "mistral": {"sliding_window": 8},
    "qwen3": {},
}


@pytest.fixture(scope="session")
def dense_pairs(tmp_path_factory):
    """`dense_pairs(model_type)`: folders of an anchor and a pretrained model (read only)."""
    made: dict[str, tuple[Path, Path]] = {}

    def pair(model_type: str) -> tuple[Path, Path]:
        if model_type not in made:
            root = tmp_path_factory.mktemp(model_type)
            for seed, name in enumerate(("anchor", "pretrained")):
                model = build_tiny(model_type, seed=seed, **DENSE[model_type])
                model.save_pretrained(root / name)
            made[model_type] = root / "anchor", root / "pretrained"
        return made[model_type]

    return pair


@pytest.fixture(scope="session")
def word_anchor(tmp_path_factory):
    """A dense anchor with a tokenizer of 40 words."""
    folder = tmp_path_factory.mktemp("words") / "anchor"
    build_tiny("olmo2").save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def word_moe(tmp_path_factory):
    """A MoE with a tokenizer of 40 words."""
    folder = tmp_path_factory.mktemp("word-moe") / "host"
    build_tiny("olmoe", hidden_size=64).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder
