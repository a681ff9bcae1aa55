import pytest
import torch
from transformers import AutoModelForCausalLM

from moegraft.bar.append import FAMILIES, plan_append, write_append
from moegraft.bar.branch import BranchRecipe, plan_branch
from moegraft.bar.distance import PROBES, distance, probe_ids
from moegraft.bar.manifest import read_manifest
from moegraft.bar.names import piece_hashes
from moegraft.checkpoint import open_checkpoint
from moegraft.errors import BranchError
from moegraft.runtime.hooks import observed
from moegraft.train import Blocks, RouterLoss, Trainable, TrainOptions, train_lm
from moegraft.train.freeze import freeze
from tiny_families import build_tiny, stored_tensors

WIDE = {"hidden_size": 64}
"""Wide enough for a half-space that holds all tokens of the probe text, as text has it."""


def append(tmp_path, host, **recipe):
    plan = plan_append(BranchRecipe(str(host), "math", **recipe))
    return plan, write_append(plan, tmp_path / "branch")


@pytest.fixture(scope="module", params=FAMILIES)
def host(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "host"
    build_tiny(request.param, **WIDE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def olmoe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("olmoe-host") / "host"
    build_tiny("olmoe", **WIDE).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("count", [1, 2])
def test_appended_experts_change_no_bit_of_any_logit(host, count, tmp_path):
    plan, manifest = append(tmp_path, host, experts=count)
    written = open_checkpoint(tmp_path / "branch")
    assert written.num_experts == 4 + count
    assert distance(plan.anchor, written)["identical"]
    assert all(row.num_displaced == row.num_loud == 0 for row in plan.rows.values())
    assert manifest.num_appended == count
    assert plan.starts_equal
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "branch", output_loading_info=True)
    assert not any(info.values()), info
    old = stored_tensors(host)
    new = stored_tensors(tmp_path / "branch")
    for name, tensor in old.items():
        assert torch.equal(new[name][: len(tensor)], tensor), name
    downs = [
        t for n, t in new.items() if (n not in old and "down" in n) or (".w2" in n and n not in old)
    ]
    assert downs
    assert not any(tensor.any() for tensor in downs)


def test_everything_old_is_frozen_by_name(olmoe, tmp_path):
    _, manifest = append(tmp_path, olmoe)
    assert manifest.shared == {}
    assert "model.layers.0.mlp.gate.weight[0:4]" in manifest.frozen
    assert "model.embed_tokens.weight" in manifest.frozen
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in manifest.frozen
    assert "model.layers.1.mlp.experts.4.up_proj.weight" not in manifest.frozen
    written = open_checkpoint(tmp_path / "branch")
    assert dict(piece_hashes(written, manifest.frozen)) == manifest.frozen
    assert read_manifest(tmp_path / "branch") == manifest


def routed_to(model, family, expert, ids):
    """Share of tokens that are sent to `expert`, by layer."""
    found = {}
    with torch.no_grad(), observed(model, family, lambda r: found.setdefault(r.layer, r.experts)):
        model(ids)
    return [float((chosen == expert).any(1).float().mean()) for chosen in found.values()]


def test_a_balancing_loss_brings_tokens_to_the_silent_expert(olmoe, tmp_path):
    _, manifest = append(tmp_path, olmoe)
    branch = open_checkpoint(tmp_path / "branch")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "branch")
    ids = torch.tensor(probe_ids(branch, PROBES))
    assert routed_to(model, branch.family, 4, ids) == [0, 0]
    model.train()
    open_rows = {"*.mlp.experts.*": (4,), "*.mlp.gate.weight": (4,)}
    frozen = freeze(model, Trainable(rows=open_rows))
    positions = torch.arange(24, dtype=torch.int32).repeat(4, 1)
    train_lm(
        model,
        Blocks(ids.int(), positions),
        TrainOptions(num_steps=60, batch=4, learning_rate=0.05, epsilon=1e-15, use_cpu=True),
        work=tmp_path / "work",
        router=RouterLoss(balance=0.1),
        prepare=lambda _, optimizer: frozen.guard(optimizer),
    )
    frozen.check()
    assert min(routed_to(model, branch.family, 4, ids)) > 0
    down = model.model.layers[1].mlp.experts.down_proj
    assert down[4].any()
    model.save_pretrained(tmp_path / "trained")
    trained = open_checkpoint(tmp_path / "trained")
    assert dict(piece_hashes(trained, manifest.frozen)) == manifest.frozen


def test_text_of_the_domain_reaches_the_new_expert_from_the_start(word_moe, tmp_path):
    (tmp_path / "keep.txt").write_text("\n\n".join(f"w{i} w{i + 1} w{i + 2}" for i in range(1, 16)))
    (tmp_path / "domain.txt").write_text("\n\n".join(f"w{i} w{i - 3} w{i}" for i in range(30, 40)))
    texts = {"probe": str(tmp_path / "keep.txt"), "toward": str(tmp_path / "domain.txt")}
    plan, manifest = append(tmp_path, word_moe, **texts)
    for row in plan.rows.values():
        assert row.num_displaced == 0
        assert row.share_reached > 0.9
    branch = open_checkpoint(tmp_path / "branch")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "branch")
    ids = torch.tensor(probe_ids(branch, ["w33 w30 w33"]))
    assert min(routed_to(model, branch.family, 4, ids)) > 0.9
    assert manifest.start["router"] == "toward"
    assert manifest.start["layers"][0]["reached"] > 0.9
    assert not any("--toward" in line for line in plan.warnings)


def test_a_start_that_cannot_be_silent_is_told_and_measured(tmp_path):
    """Behind 16 numbers no half-space holds 96 arbitrary tokens."""
    build_tiny("olmoe").save_pretrained(tmp_path / "host")
    plan, manifest = append(tmp_path, tmp_path / "host")
    assert "no start without any change was found in" in plan.warnings[0]
    assert not plan.starts_equal
    assert sum(layer["loud"] for layer in manifest.start["layers"]) > 0
    found = distance(plan.anchor, open_checkpoint(tmp_path / "branch"))
    assert not found["identical"]


def test_few_tokens_are_warned_of(olmoe, tmp_path):
    plan, _ = append(tmp_path, olmoe)
    assert any("found on 96 tokens for 64 numbers each" in line for line in plan.warnings)
    assert len(PROBES) * 24 == 96


def test_hosts_and_options_that_do_not_apply_are_refused(olmoe, tmp_path, dense_pairs):
    build_tiny("gpt_oss").save_pretrained(tmp_path / "gpt")
    with pytest.raises(BranchError, match="needs a softmax router without bias; expected one of"):
        append(tmp_path, tmp_path / "gpt")
    with pytest.raises(BranchError, match="pretrained is for dense anchors"):
        append(tmp_path, olmoe, pretrained="x")
    with pytest.raises(BranchError, match="router is for dense anchors"):
        append(tmp_path, olmoe, router="zero")
    with pytest.raises(BranchError, match="experts and toward are for MoE hosts"):
        plan_branch(BranchRecipe(str(dense_pairs("olmo2")[0]), "math", experts=2))
    with pytest.raises(BranchError, match="probe text cannot be read"):
        append(tmp_path, olmoe, toward=str(tmp_path / "no.txt"))
    assert not (tmp_path / "branch").exists()
