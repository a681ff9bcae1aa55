import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moegraft.checkpoint import open_checkpoint
from moegraft.errors import CheckpointError, IncompatibleError, RecipeError
from moegraft.xpert.adapt import initialise_target
from moegraft.xpert.decompose import Decomposition
from moegraft.xpert.inherit import INHERITABLE, parse_inherit
from moegraft.xpert.resize import Resizing
from moegraft.xpert.start import Adaptation, Start
from moegraft.xpert.target import make_target
from small_knowledge import take, target_config
from tiny_families import build_tiny

SAME = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "rope_parameters", "rms_norm_eps", "tie_word_embeddings"),
)
TRUNK = Adaptation(inherit=INHERITABLE)


@pytest.fixture(scope="module")
def donor(olmoe_pair):
    return open_checkpoint(str(olmoe_pair[0]))


@pytest.fixture(scope="module")
def known(olmoe_pair, tmp_path_factory):
    return take(olmoe_pair[0], tmp_path_factory.mktemp("known") / "k")


def started(known, donor, how=TRUNK, family="olmoe", **sizes):
    sizes = {"max_position_embeddings": 512} | sizes
    return Start(make_target(target_config(family, **sizes), "t"), how, known, donor)


def tensors(start):
    return {tensor.name: start.tensor(tensor) for tensor in start.target.tensors}


def test_a_trunk_of_the_same_width_is_the_donors_own(known, donor, olmoe_pair, tmp_path):
    start = started(known, donor)
    initialise_target(start, tmp_path / "t", donor=donor)
    made = load_file(tmp_path / "t" / "model.safetensors")
    had = load_file(olmoe_pair[0] / "model.safetensors")
    same = {name for name in made if torch.equal(made[name], had.get(name, torch.empty(0)))}
    fresh_or_ffn = {name for name in made if ".mlp." in name}
    assert same == set(made) - fresh_or_ffn
    assert start.about()["num_parameters"]["fresh"] == 2 * 32  # two routers for one expert


def test_a_moe_of_alike_experts_gives_its_trunk_and_function_to_a_dense_model(tmp_path, capsys):
    """Mixtral's weights add up to 1, so equal experts make it the dense model of one of them."""
    moe = build_tiny("mixtral").eval()
    with torch.no_grad():
        for layer in moe.model.layers:
            for parameter in layer.mlp.experts.parameters():
                parameter.copy_(parameter[:1].expand_as(parameter))
    moe.save_pretrained(tmp_path / "moe")
    sizes = {key: moe.config.to_dict()[key] for key in ("vocab_size", "hidden_size")}
    sizes |= {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes |= {
        "rope_parameters": moe.config.rope_parameters,
        "rms_norm_eps": moe.config.rms_norm_eps,
    }
    donor = open_checkpoint(str(tmp_path / "moe"))
    known = take(tmp_path / "moe", tmp_path / "k", Decomposition("single"), experts=(1, 0))
    for family in ("llama", "mistral"):
        start = started(known, donor, family=family, **sizes)
        assert start.about()["num_parameters"]["fresh"] == 0
        initialise_target(start, tmp_path / family)
        dense = AutoModelForCausalLM.from_pretrained(tmp_path / family).eval()
        ids = torch.arange(3, 40)[None]
        assert torch.allclose(dense(ids).logits, moe(ids).logits, atol=1e-5)
    capsys.readouterr()


def test_doubled_widths_and_heads_preserve_the_function(known, donor, tmp_path):
    """A stream of twice the width holds everything twice, so its norms see the same mean square."""
    logits = []
    for name, sizes in {
        "plain": {},
        "double": {
            "hidden_size": 64,
            "intermediate_size": 32,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "head_dim": 8,
        },
    }.items():
        initialise_target(started(known, donor, **sizes), tmp_path / name)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        logits.append(model(torch.arange(3, 40)[None]).logits)
    assert torch.allclose(*logits, atol=1e-5)


def test_a_narrower_trunk_follows_the_residual_dimensions_and_keeps_heads_whole(known, donor):
    start = started(
        known, donor, hidden_size=16, num_attention_heads=2, num_key_value_heads=2, head_dim=8
    )
    made, had = tensors(start), load_file(donor.path / "model.safetensors")
    index = start.ffns.residual
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    assert torch.equal(made[embedding], had[embedding][:, index])
    assert torch.equal(made[head], had[head][:, index])
    norm = "model.layers.1.input_layernorm.weight"
    assert torch.equal(made[norm], had[norm][index])
    attention = "model.layers.0.self_attn."
    out = had[f"{attention}o_proj.weight"]
    best = out.square().sum(0).reshape(4, 8).sum(1).topk(2).indices.sort().values
    rows = (best[:, None] * 8 + torch.arange(8)).flatten()
    assert torch.equal(
        made[f"{attention}q_proj.weight"], had[f"{attention}q_proj.weight"][rows][:, index]
    )
    assert torch.equal(
        made[f"{attention}v_proj.weight"], had[f"{attention}v_proj.weight"][rows][:, index]
    )
    assert torch.equal(made[f"{attention}o_proj.weight"], out[index][:, rows])
    assert torch.equal(made[f"{attention}q_norm.weight"], had[f"{attention}q_norm.weight"][rows])


def test_attention_and_norms_come_from_the_layer_of_the_ffn(known, donor):
    how = Adaptation(Resizing(depth="repeat"), inherit=("attention", "norm"))
    start = started(known, donor, how, num_hidden_layers=3)
    made, had = tensors(start), load_file(donor.path / "model.safetensors")
    for part in ("self_attn.k_proj", "post_attention_layernorm"):
        for layer, source in enumerate([0, 1, 0]):
            name = f"model.layers.{{}}.{part}.weight"
            assert torch.equal(made[name.format(layer)], had[name.format(source)])
    assert not torch.equal(made["lm_head.weight"], had["lm_head.weight"])


MISFITS = [
    ("olmo2", {}, "cannot inherit norm: norms stand at other places than in"),
    ("llama", {}, "cannot inherit attention: queries and keys are made otherwise than in"),
    ("olmoe", {"vocab_size": 64}, "vocab_size is 64, and 128 in"),
    ("olmoe", {"tie_word_embeddings": True}, "tie_word_embeddings is true, and"),
    (
        "olmoe",
        {"num_key_value_heads": 2},
        "heads of 8 dimensions, 2 per key-value",
    ),
    ("olmoe", {"num_attention_heads": 2, "num_key_value_heads": 2}, "heads of 16 dimensions"),
    ("olmoe", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, "rotary embed"),
    ("qwen3", {"head_dim": 8}, r"q_norm.weight has shape \[8\], and \[32\] in"),
    ("olmoe", {"rms_norm_eps": 0.1}, "cannot inherit norm: rms_norm_eps is 0.1, and 1e-05 in"),
    ("olmoe", {"clip_qkv": 0.1}, "cannot inherit attention: clip_qkv is 0.1, and None in"),
]


@pytest.mark.parametrize(("family", "sizes", "message"), MISFITS)
def test_a_trunk_that_would_mean_something_else_is_one_line(family, sizes, message, known, donor):
    with pytest.raises(IncompatibleError, match=message) as raised:
        started(known, donor, family=family, **sizes)
    assert "\n" not in str(raised.value)
    assert "--inherit" in str(raised.value)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"sliding_window": 4}, "sliding_window is 4, and None in"),
        ({"sliding_window": 512}, None),  # as long as the context is
        (("hidden_size", "num_attention_heads", "num_key_value_heads"), "would count twice in the"),
    ],
)
def test_tied_and_windowed_trunks_are_inherited_where_they_mean_the_same(
    sizes, message, tmp_path, capsys
):
    moe = build_tiny("mixtral", tie_word_embeddings=True)
    moe.save_pretrained(tmp_path / "moe")
    capsys.readouterr()
    donor = open_checkpoint(str(tmp_path / "moe"))
    known = take(tmp_path / "moe", tmp_path / "k", experts=(1, 0))
    own = moe.config.to_dict()
    doubled = {name: 2 * own[name] for name in sizes if not isinstance(sizes, dict)}
    head_dim = own["hidden_size"] // own["num_attention_heads"]
    sizes = {name: own[name] for name in SAME} | {"head_dim": head_dim} | (doubled or sizes)
    if message is None:
        assert started(known, donor, family="mistral", **sizes)
        return
    with pytest.raises(IncompatibleError, match=message) as raised:
        started(known, donor, family="mistral", **sizes)
    assert "--inherit" in str(raised.value)


def test_multipliers_of_another_family_are_refused(tmp_path, capsys):
    moe = build_tiny("granitemoe", embedding_multiplier=3.0, attention_multiplier=0.1)
    moe.save_pretrained(tmp_path / "moe")
    capsys.readouterr()
    donor = open_checkpoint(str(tmp_path / "moe"))
    known = take(tmp_path / "moe", tmp_path / "k", experts=(1, 0))
    own = moe.config.to_dict()
    sizes = {name: own[name] for name in SAME}
    for part, field in (("embedding", "embedding_multiplier is 1.0, and 3.0"), ("attention", "at")):
        with pytest.raises(IncompatibleError, match=f"cannot inherit {part}: {field}"):
            started(known, donor, Adaptation(inherit=(part,)), family="llama", **sizes)


def test_what_else_cannot_be_inherited_is_one_line(known, donor, olmoe_pair, tmp_path):
    with pytest.raises(RecipeError, match="expected the checkpoint that gives, with --donor"):
        started(known, None)
    with pytest.raises(RecipeError, match="expected knowledge"):
        started(None, donor)
    with pytest.raises(RecipeError, match="--uncoupled: has no residual dimensions"):
        started(known, donor, Adaptation(Resizing(couple=False), INHERITABLE), hidden_size=16)
    with pytest.raises(IncompatibleError, match=r"knowledge of host, and .*donor is another"):
        started(known, open_checkpoint(str(olmoe_pair[1])))
    with pytest.raises(RecipeError, match="--inherit head: expected none, trunk, or some of"):
        parse_inherit("head")
    assert parse_inherit("norm, norm,attention") == ("norm", "attention")
    assert (parse_inherit("none"), parse_inherit("trunk")) == ((), INHERITABLE)
    bad = shutil.copytree(donor.path, tmp_path / "bad")
    changed = load_file(bad / "model.safetensors")
    changed["model.norm.weight"][3] = float("inf")
    save_file(changed, bad / "model.safetensors", metadata={"format": "pt"})
    start = started(known, open_checkpoint(str(bad)))
    with pytest.raises(CheckpointError, match=r"norm: final_norm\.weight has NaN or infinite"):
        initialise_target(start, tmp_path / "t")
    assert not (tmp_path / "t").exists()
