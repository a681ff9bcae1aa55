import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from moegraft.checkpoint import open_checkpoint
from moegraft.errors import (
    CheckpointError,
    FamilyError,
    IncompatibleError,
    OutputError,
    RecipeError,
)
from moegraft.xpert.adapt import initialise_target
from moegraft.xpert.decompose import Decomposition
from moegraft.xpert.resize import Resizing
from moegraft.xpert.start import Adaptation, Start
from moegraft.xpert.target import make_target, read_target
from small_knowledge import take, target_config
from tiny_families import TINY

TARGETS = {
    "llama": {"num_hidden_layers": 1},
    "olmo2": {"intermediate_size": 40, "tie_word_embeddings": True},
    "qwen3": {"hidden_size": 24, "num_attention_heads": 2, "head_dim": 8, "num_key_value_heads": 1},
    "mistral": {"hidden_size": 48, "intermediate_size": 20},
    "olmoe": {"num_experts": 3, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen3_moe": {**TINY["qwen3_moe"], "moe_intermediate_size": 16},
    "qwen2_moe": TINY["qwen2_moe"],
    "deepseek_v3": TINY["deepseek_v3"],
    "granitemoe": {"num_local_experts": 2, "num_experts_per_tok": 1},
}
"""Sizes by family; the knowledge has hidden 32, 16 neurons and 2 layers."""


@pytest.fixture(scope="module")
def known(olmoe_pair, tmp_path_factory):
    return take(olmoe_pair[0], tmp_path_factory.mktemp("known") / "k")


def load(folder):
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert {name: list(told[name]) for name in told if told[name]} == {}
    return model


def silent(capsys):
    capsys.readouterr()


@pytest.mark.parametrize("family", TARGETS)
def test_transformers_loads_every_key_of_every_target(family, known, tmp_path, capsys):
    target = make_target(target_config(family, **TARGETS[family]), family)
    start = Start(target, Adaptation(), known)
    steps = []
    initialise_target(start, tmp_path / "t", on_step=lambda *step: steps.append(step))
    assert len(steps) == len(target.tensors) == steps[-1][1]
    model = load(tmp_path / "t")
    live = model.state_dict()
    for tensor in target.tensors:
        whole = live[tensor.live]
        if tensor.shape == tuple(whole.shape):
            assert torch.equal(whole, start.tensor(tensor)), tensor.name
    assert model(torch.arange(6)[None]).logits.isfinite().all()
    opened = open_checkpoint(str(tmp_path / "t"))
    assert opened.family.name == family
    silent(capsys)


def test_the_same_shape_holds_the_knowledge_under_the_ffn_keys(olmoe_pair, tmp_path):
    known = take(olmoe_pair[0], tmp_path / "k", Decomposition("mean"))
    start = Start(make_target(target_config("olmoe"), "t"), Adaptation(), known)
    initialise_target(start, tmp_path / "t")
    model = load(tmp_path / "t")
    for layer in (0, 1):
        found = known.layer(layer)
        experts = model.model.layers[layer].mlp.experts
        gate_up = torch.cat([found["gate"].matrix(), found["up"].matrix()])
        assert torch.equal(experts.gate_up_proj[0], gate_up)
        assert torch.equal(experts.down_proj[0], found["down"].matrix())


def test_one_seed_gives_the_same_bytes_and_another_seed_other_ones(known, tmp_path):
    target = make_target(target_config(), "t")
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        initialise_target(Start(target, Adaptation(seed=seed), known), tmp_path / name)
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_fresh_tensors_are_drawn_as_transformers_does(known):
    config = target_config("olmoe", hidden_size=64, num_experts=4, initializer_range=0.05)
    target = make_target(config, "t")
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).state_dict()
    start = Start(target, Adaptation(), None)
    for tensor in target.tensors:
        own, other = start.tensor(tensor), theirs[tensor.live]
        assert start.source(tensor) == "fresh"
        if "norm" in tensor.name:
            assert torch.equal(own, other)
        else:
            assert float(own.std()) == pytest.approx(float(other.std()), rel=0.2)
            assert not torch.equal(own, other)
    embedding = next(one for one in target.tensors if "embed" in one.name)
    assert not start.tensor(embedding)[1].any()  # the row of the padding token


def test_fresh_tensors_do_not_depend_on_the_other_tensors(known):
    small, deep = (
        Start(make_target(target_config(num_hidden_layers=n), "t"), Adaptation(seed=3), knowledge)
        for n, knowledge in ((2, known), (5, None))
    )
    there = {tensor.name: deep.tensor(tensor) for tensor in deep.target.tensors}
    for tensor in small.target.tensors:
        same = small.source(tensor) == "fresh"
        assert torch.equal(small.tensor(tensor), there[tensor.name]) == same


@pytest.mark.parametrize("control", ["matched", "shuffled", "fresh"])
def test_controls_keep_the_scale_and_nothing_else(known, control):
    target = make_target(target_config(), "t")
    plain = Start(target, Adaptation(), known)
    other = Start(target, Adaptation(control=control), known)
    for tensor in target.tensors:
        own, adapted = other.tensor(tensor), plain.tensor(tensor)
        assert torch.equal(own, adapted) != tensor.is_ffn
        if tensor.is_ffn and control != "fresh":
            assert float(own.std()) == pytest.approx(float(adapted.std()), rel=0.1)
            same = torch.equal(own.flatten().sort().values, adapted.flatten().sort().values)
            assert same == (control == "shuffled")
        elif tensor.is_ffn:
            assert torch.equal(own, target.fresh(tensor, 0))


def test_the_checkpoint_says_where_it_comes_from(olmoe_pair, known, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(target_config(hidden_size=24, num_attention_heads=3))
    )
    how = Adaptation(Resizing(depth="uniform"), dtype="bfloat16")
    about = initialise_target(Start(read_target(tmp_path), how, known), tmp_path / "t")
    written = json.loads((tmp_path / "t" / "provenance.json").read_text())
    assert written == json.loads(json.dumps(about))
    assert written["adaptation"]["resizing"]["depth"] == "uniform"
    assert written["mapped"]["layers"] == [0, 1] and len(written["mapped"]["residual"]) == 24
    assert written["knowledge"]["experts"]["0"] == [[3, 1, 0, 7]]
    assert written["num_parameters"]["donor"] == 0
    assert written["num_parameters"]["knowledge"] == 2 * 3 * 24 * 16
    tensors = load_file(tmp_path / "t" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    card = ModelCard.load(tmp_path / "t" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert card.data.base_model == ["host"] and "xpert" in card.data.tags
    assert "4 experts per layer of host (olmoe)" in card.text
    assert str(tmp_path) not in str(card) + json.dumps(written)


def test_the_tokenizer_comes_along_where_it_fits(chat_pair, tmp_path):
    donor = open_checkpoint(str(chat_pair[0]))
    vocab = donor.config["vocab_size"]
    known = take(chat_pair[0], tmp_path / "k", experts=(0, 1))
    hidden = donor.config["hidden_size"]
    config = target_config(vocab_size=vocab, hidden_size=hidden)
    text = "Rain on 7 hills."
    ids = AutoTokenizer.from_pretrained(chat_pair[0])(text).input_ids
    for name, given in (("donor", {"donor": donor}), ("named", {"tokenizer": str(donor.path)})):
        start = Start(make_target(config, "t"), Adaptation(), known)
        assert initialise_target(start, tmp_path / name, **given)["tokenizer"] == name
        assert AutoTokenizer.from_pretrained(tmp_path / name)(text).input_ids == ids
    small = Start(make_target({**config, "vocab_size": 20}, "t"), Adaptation(), known)
    assert initialise_target(small, tmp_path / "none", donor=donor)["tokenizer"] is None
    with pytest.raises(IncompatibleError, match="and t a vocab_size of 20"):
        initialise_target(small, tmp_path / "x", tokenizer=str(donor.path))
    with pytest.raises(CheckpointError, match=r"--tokenizer .*does not load"):
        initialise_target(small, tmp_path / "x", tokenizer=str(tmp_path / "nowhere"))
    assert not (tmp_path / "x").exists()


MISFITS = [
    (IncompatibleError, "hidden_act is gelu, and silu in host", {"hidden_act": "gelu"}),
    (RecipeError, "first: the target has 3 layers and", {"num_hidden_layers": 3}),
    (IncompatibleError, "cannot build this model", {"hidden_size": "wide"}),
    (
        IncompatibleError,
        "FFNs of gpt_oss cannot start",
        {"model_type": "gpt_oss", **TINY["gpt_oss"]},
    ),
    (FamilyError, "^config.json: model_type 'gpt2'", {"model_type": "gpt2"}),
    (IncompatibleError, "the model has no layers; expected sizes", {"num_hidden_layers": 0}),
    (IncompatibleError, "gate_proj.weight is empty; expected sizes", {"intermediate_size": 0}),
    (IncompatibleError, "cannot build this model", {"hidden_size": 0}),
    (
        IncompatibleError,
        "3 experts per token of 2; expected at most as many",
        {"model_type": "olmoe", "num_experts": 2, "num_experts_per_tok": 3},
    ),
]


@pytest.mark.parametrize("misfit", MISFITS, ids=[message for _, message, _ in MISFITS])
def test_a_target_that_does_not_fit_is_one_line_and_nothing_is_written(misfit, known, tmp_path):
    error, message, changes = misfit
    with pytest.raises(error, match=message) as raised:
        target = make_target(target_config() | changes, "config.json")
        initialise_target(Start(target, Adaptation(), known), tmp_path / "t")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_damaged_knowledge_and_taken_folders_are_one_line(known, tmp_path):
    bad = shutil.copytree(known.path, tmp_path / "bad")
    tensors = load_file(bad / "layer-001.safetensors")
    tensors["0.up.core"][0, 0] = float("nan")
    save_file(tensors, bad / "layer-001.safetensors")
    start = Start(make_target(target_config(), "t"), Adaptation(), type(known)(bad, known.about))
    with pytest.raises(CheckpointError, match=r"layer-001\.safetensors: up has NaN or infinite"):
        initialise_target(start, tmp_path / "t")
    with pytest.raises(OutputError, match="the output is the input"):
        initialise_target(start, bad)
    assert not (tmp_path / "t").exists()
    with pytest.raises(RecipeError, match=r"no readable config\.json of a model"):
        read_target(tmp_path / "nowhere.json")
    for wrong in ({"dtype": "int8"}, {"control": "best"}):
        with pytest.raises(RecipeError, match="expected one of"):
            Adaptation(**wrong)
