from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from moegraft.nano import dense, pretrain, tool_world

RECIPE = pretrain.PretrainRecipe(num_steps=3, batch=2, length=48, save_every=2)
ANNEAL = pretrain.PretrainRecipe(num_steps=2, batch=2, length=48, save_every=1, seed=1)
SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}


@pytest.fixture(scope="module")
def tokenizer():
    return dense.tokenizers.train(dense.corpus(40))


@pytest.fixture
def quick(monkeypatch, tokenizer):
    monkeypatch.setattr(dense.tokenizers, "train", lambda texts: tokenizer)


def test_the_base_has_between_one_and_two_million_parameters(tokenizer):
    size = sum(p.numel() for p in dense.new_model(tokenizer, 0, vocab_size=1024).parameters())
    assert 1e6 < size < 2e6


def test_the_tokenizer_has_no_token_for_a_call_yet(tokenizer):
    assert not set(tool_world.SPECIAL_TOKENS) & set(tokenizer.get_vocab())
    assert all(tool_world.CALL not in text for text in dense.corpus(40))


@pytest.mark.parametrize(("about", "stop"), [(RECIPE, 2), (ANNEAL, 1)])
def test_a_tiny_build_resumes_to_the_same_weights(tmp_path, quick, monkeypatch, about, stop):
    dense.build(tmp_path / "whole", RECIPE, ANNEAL, **SIZES)
    whole_batch = pretrain.packed_batch

    def killed(tokenizer, recipe, step, documents):
        if step == stop and recipe is about:
            raise KeyboardInterrupt
        return whole_batch(tokenizer, recipe, step, documents)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "packed_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            dense.build(tmp_path / "base", RECIPE, ANNEAL, **SIZES)
    assert not (tmp_path / "base").exists()
    dense.build(tmp_path / "base", RECIPE, ANNEAL, **SIZES)
    assert not (tmp_path / "base-state.pt").exists()
    once, resumed = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "base"))
    assert all(torch.equal(resumed[name], once[name]) for name in once)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert model.config.model_type == "olmo2"
    assert AutoTokenizer.from_pretrained(tmp_path / "base").chat_template


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_pair_is_made_once_and_exported_small(tmp_path, quick):
    base, anchor = tmp_path / "dense-base", tmp_path / "dense"
    dense.build(base, RECIPE, ANNEAL, **SIZES)
    dense.post_train(base, anchor, replace(dense.ANCHOR, num_steps=2, warmup_steps=1))
    before, after = (load_file(folder / "model.safetensors") for folder in (base, anchor))
    assert before.keys() == after.keys()
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    dense.main(["--work", str(tmp_path), "--out", str(tmp_path / "out")])
    assert torch.equal(
        load_file(anchor / "model.safetensors")["lm_head.weight"], after["lm_head.weight"]
    )
    for name in ("dense-base", "dense"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / name, dtype="auto")
        assert model.dtype == torch.bfloat16
        assert model.generation_config.do_sample is False
        assert f"nano: {name}" in (tmp_path / "out" / name / "README.md").read_text()
