import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moegraft.bar.branch import BranchRecipe, plan_branch, write_branch
from moegraft.bar.distance import distance
from moegraft.bar.manifest import read_manifest
from moegraft.bar.names import piece_hashes
from moegraft.bar.twin import TWINS
from moegraft.checkpoint import open_checkpoint
from moegraft.errors import BranchError, OutputError
from tiny_families import build_tiny, stored_tensors

EXPERT = {
    "flex_olmo": "model.layers.{}.mlp.experts.{}.{}_proj.weight",
    "qwen3_moe": "model.layers.{}.mlp.experts.{}.{}_proj.weight",
    "mixtral": "model.layers.{}.block_sparse_moe.experts.{}.{}.weight",
}
ROLES = {"mixtral": {"gate": "w1", "up": "w3", "down": "w2"}}


def expert_name(family, layer, expert, role):
    return EXPERT[family].format(layer, expert, ROLES.get(family, {}).get(role, role))


def make(tmp_path, anchor, **recipe):
    plan = plan_branch(BranchRecipe(anchor=str(anchor), domain="math", **recipe))
    return plan, write_branch(plan, tmp_path / "branch")


@pytest.mark.parametrize("model_type", TWINS)
def test_a_branch_is_the_anchor_beside_the_pretrained_ffn(model_type, dense_pairs, tmp_path):
    anchor, pretrained = dense_pairs(model_type)
    plan, _ = make(tmp_path, anchor, pretrained=str(pretrained))
    written = stored_tensors(tmp_path / "branch")
    own, given = stored_tensors(anchor), stored_tensors(pretrained)
    for name, tensor in own.items():
        if ".mlp." not in name:
            assert torch.equal(written.pop(name), tensor)
            continue
        layer, role = int(name.split(".")[2]), name.split(".")[4].removesuffix("_proj")
        for expert, source in enumerate((own, given)):
            named = expert_name(plan.family.name, layer, expert, role)
            assert torch.equal(written.pop(named), source[name])
    assert sorted(tuple(router.shape) for router in written.values()) == [(2, 16), (2, 16)]
    routers = torch.cat([*written.values()])
    assert 0 < float(routers.abs().max()) <= 0.06
    assert not torch.equal(routers[:2], routers[2:])


@pytest.mark.parametrize("model_type", TWINS)
def test_stock_transformers_loads_every_tensor_with_the_anchors_settings(
    model_type, dense_pairs, tmp_path
):
    make(tmp_path, dense_pairs(model_type)[0])
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "branch", output_loading_info=True
    )
    assert not any(info.values()), info
    dense = AutoModelForCausalLM.from_pretrained(dense_pairs(model_type)[0]).config
    for key in ("rope_parameters", "rms_norm_eps", "tie_word_embeddings", "eos_token_id"):
        assert getattr(model.config, key) == getattr(dense, key), key
    if model_type == "mistral":
        assert model.config.sliding_window == 8
    ids = torch.arange(3, 13)[None]
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > 10


def test_the_manifest_names_what_must_not_move_and_its_bytes(dense_pairs, tmp_path):
    _, manifest = make(tmp_path, dense_pairs("llama")[0])
    assert read_manifest(tmp_path / "branch") == manifest
    gate = "model.layers.0.block_sparse_moe.gate.weight[0:1]"
    assert {gate, expert_name("mixtral", 1, 0, "down")} <= {*manifest.frozen}
    assert len(manifest.frozen) == 2 * 4
    assert expert_name("mixtral", 1, 1, "down") not in {*manifest.frozen, *manifest.shared}
    assert "model.layers.0.self_attn.q_proj.weight" in manifest.shared
    written = open_checkpoint(tmp_path / "branch")
    recorded = {**manifest.frozen, **manifest.shared}
    assert dict(piece_hashes(written, recorded)) == recorded


def test_a_trainer_that_saves_fused_experts_finds_the_same_pieces(dense_pairs, tmp_path):
    _, manifest = make(tmp_path, dense_pairs("olmo2")[0])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "branch")
    model.save_pretrained(tmp_path / "saved", save_original_format=False)
    saved = open_checkpoint(tmp_path / "saved")
    assert saved.layout == "fused"
    assert dict(piece_hashes(saved, manifest.frozen)) == manifest.frozen


def test_a_pretrained_ffn_of_another_dtype_is_cast_to_the_anchors(dense_pairs, tmp_path):
    anchor, _ = dense_pairs("olmo2")
    half = build_tiny("olmo2", seed=4).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    make(tmp_path, anchor, pretrained=str(tmp_path / "half"))
    written = stored_tensors(tmp_path / "branch")
    name = expert_name("flex_olmo", 0, 1, "up")
    assert torch.equal(written[name], half.model.layers[0].mlp.up_proj.weight.float())


def test_a_pretrained_start_is_measured_as_different(dense_pairs, tmp_path):
    anchor, pretrained = dense_pairs("qwen3")
    plan, _ = make(tmp_path, anchor, pretrained=str(pretrained))
    found = distance(plan.anchor, open_checkpoint(tmp_path / "branch"))
    assert not found["within_tolerance"]
    assert found["kl"] > 1e-5
    assert found["num_tokens"] == 4 * 24


def test_domain_embeddings_become_router_rows(dense_pairs, tmp_path):
    rows = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    make(tmp_path, dense_pairs("olmo2")[0], router=str(tmp_path / "rows.npy"))
    written = stored_tensors(tmp_path / "branch")
    for layer in (0, 1):
        assert torch.equal(written[f"model.layers.{layer}.mlp.gate.weight"], torch.tensor(rows))


@pytest.mark.parametrize(("count", "rows"), [(2, 64), (24, 64), (25, 65)])
def test_new_tokens_take_padding_rows_first_and_start_at_the_mean(
    count, rows, word_anchor, tmp_path
):
    tokens = tuple(f"<t{index}>" for index in range(count))
    plan, manifest = make(tmp_path, word_anchor, new_tokens=tokens)
    assert ("start equal" in " ".join(plan.warnings)) == (count > 1)
    assert manifest.tokens == {token: 40 + index for index, token in enumerate(tokens)}
    written, own = stored_tensors(tmp_path / "branch"), stored_tensors(word_anchor)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert written[name].shape == (rows, 16)
        assert torch.equal(written[name][:40], own[name][:40])
        assert torch.equal(written[name][40 + count : 64], own[name][40 + count :])
        mean = own[name][:40].mean(0)
        assert torch.allclose(written[name][40 : 40 + count], mean.expand(count, -1), atol=1e-6)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "branch")
    assert model.config.vocab_size == rows
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "branch")
    assert tokenizer("w1 <t1> w2")["input_ids"] == [1, 41, 2]
    assert "<t1>" in tokenizer.decode([1, 41, 2], skip_special_tokens=True)
    known = distance(plan.anchor, open_checkpoint(tmp_path / "branch"), known=40)
    assert known["within_tolerance"]


def test_noise_tells_new_tokens_apart(word_anchor, tmp_path):
    plan, _ = make(tmp_path, word_anchor, new_tokens=("<a>", "<b>"), token_noise=0.1)
    assert not plan.warnings
    row = stored_tensors(tmp_path / "branch")["lm_head.weight"]
    assert not torch.equal(row[40], row[41])


def test_new_tokens_that_cannot_be_added_are_refused(word_anchor, dense_pairs, tmp_path):
    for tokens, why in ((("w3",), "is known already"), (("<a>", "<a>"), "stands twice")):
        with pytest.raises(BranchError, match=why):
            make(tmp_path, word_anchor, new_tokens=tokens)
    with pytest.raises(BranchError, match="has no tokenizer that new tokens could be added to"):
        make(tmp_path, dense_pairs("olmo2")[0], new_tokens=("<a>",))


def test_differences_that_confound_are_flagged(word_anchor, dense_pairs, tmp_path):
    config = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    build_tiny("olmo2", **config).save_pretrained(tmp_path / "p")
    recipe = BranchRecipe(str(word_anchor), "math", pretrained=str(tmp_path / "p"))
    warnings = plan_branch(recipe).warnings
    assert any("rope: the anchor has {'rope_theta': 10000.0}" in line for line in warnings)
    assert any(line.startswith("tokenizer: token ids cannot be compared") for line in warnings)


def test_models_that_do_not_fit_are_refused(dense_pairs, tmp_path):
    anchor, _ = dense_pairs("olmo2")
    with pytest.raises(BranchError, match=r"is a llama, the anchor .* a olmo2"):
        make(tmp_path, anchor, pretrained=str(dense_pairs("llama")[0]))
    build_tiny("olmo2", intermediate_size=12).save_pretrained(tmp_path / "narrow")
    with pytest.raises(BranchError, match=r"has \[16, 12\], the anchor \[16, 24\]"):
        make(tmp_path, anchor, pretrained=str(tmp_path / "narrow"))
    build_tiny("llama").save_pretrained(tmp_path / "biased")
    with pytest.raises(BranchError, match="is a bias, which 'mixtral' cannot hold"):
        make(tmp_path, tmp_path / "biased")
    build_tiny("qwen3", use_sliding_window=True, sliding_window=4).save_pretrained(tmp_path / "w")
    with pytest.raises(BranchError, match="use_sliding_window, which qwen3_moe would apply to all"):
        make(tmp_path, tmp_path / "w")
    with pytest.raises(BranchError, match=r"router 'gaussian': expected normal, zero, or a \.npy"):
        make(tmp_path, anchor, router="gaussian")
    np.save(tmp_path / "rows.npy", np.zeros((2, 3)))
    with pytest.raises(BranchError, match=r"have shape \[2, 3\], expected \[2, 16\] or \[2, 2, 16"):
        make(tmp_path, anchor, router=str(tmp_path / "rows.npy"))
    assert not (tmp_path / "branch").exists()


def test_a_branch_never_replaces_what_is_there(dense_pairs, tmp_path):
    anchor, _ = dense_pairs("olmo2")
    make(tmp_path, anchor)
    before = json.loads((tmp_path / "branch" / "branch.json").read_text())
    with pytest.raises(OutputError, match="exists and is not empty"):
        make(tmp_path, anchor)
    assert json.loads((tmp_path / "branch" / "branch.json").read_text()) == before
