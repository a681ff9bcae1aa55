import re
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from moegraft.bar.branch import BranchRecipe, plan_branch, write_branch
from moegraft.bar.manifest import BRANCH, read_manifest, write_manifest
from moegraft.bar.merge import MergeRecipe, plan_merge, write_merge
from moegraft.bar.verify import verify_branch
from moegraft.errors import BranchError, CheckpointError


@pytest.fixture
def branch(dense_pairs, tmp_path):
    anchor, _ = dense_pairs("llama")
    write_branch(plan_branch(BranchRecipe(str(anchor), "math")), tmp_path / "branch")
    return tmp_path / "branch"


def _trained(branch, out, change, **how):
    """Some other trainer: it loads, changes the live model, and saves to a new folder."""
    model = AutoModelForCausalLM.from_pretrained(branch)
    with torch.no_grad():
        change(model)
    model.save_pretrained(out, **how)
    return out


def _expert_1(model):
    for layer in model.model.layers:
        layer.mlp.experts.gate_up_proj[1] += 1
        layer.mlp.experts.down_proj[1] += 1
        layer.mlp.gate.weight[1] += 1


@pytest.mark.parametrize("published", [True, False])
def test_a_branch_trained_elsewhere_is_accepted_and_can_be_merged(
    published, branch, dense_pairs, tmp_path
):
    out = _trained(branch, tmp_path / "new", _expert_1, save_original_format=published)
    found = verify_branch(out, branch, tokens=1000)
    assert found.layout == ("published" if published else "fused")
    assert (found.opened, found.moved, found.untrained) == ("expert", (), False)
    assert found.num_frozen == len(read_manifest(branch).frozen)
    assert read_manifest(out).stages == (
        {"stage": "elsewhere", "opened": "expert", "tokens": 1000},
    )
    assert verify_branch(out).stages == ("elsewhere",)
    recipe = MergeRecipe(str(dense_pairs("llama")[0]), (str(out),))
    write_merge(plan_merge(recipe), tmp_path / "merged")


@pytest.mark.parametrize("published", [True, False])
def test_the_first_frozen_tensor_that_moved_is_named(published, branch, tmp_path):
    def change(model):
        model.model.layers[1].mlp.experts.down_proj[0, 3, 2] += 1e-3

    out = _trained(branch, tmp_path / "new", change, save_original_format=published)
    named = r"model.layers.1.block_sparse_moe.experts.0.w2.weight is frozen but has moved"
    with pytest.raises(BranchError, match=named):
        verify_branch(out, branch)
    assert not (out / BRANCH).exists()


def test_a_moved_router_row_of_the_anchor_is_named(branch, tmp_path):
    def change(model):
        model.model.layers[0].mlp.gate.weight[0, 0] += 1e-3

    out = _trained(branch, tmp_path / "new", change)
    with pytest.raises(BranchError, match=r"layers.0.block_sparse_moe.gate.weight\[0:1\] is fro"):
        verify_branch(out, branch)


def test_what_was_opened_is_told(branch, tmp_path):
    def vocabulary(model):
        model.lm_head.weight += 1

    def shared(model):
        model.model.norm.weight += 1

    one = verify_branch(_trained(branch, tmp_path / "one", vocabulary), branch)
    assert (one.opened, one.moved, one.untrained) == ("vocabulary", ("lm_head.weight",), True)
    two = verify_branch(_trained(branch, tmp_path / "two", shared), branch)
    assert (two.opened, two.moved) == ("shared", ("model.norm.weight",))


def test_a_wider_dtype_with_the_same_values_is_told_apart_from_a_move(dense_pairs, tmp_path):
    anchor = AutoModelForCausalLM.from_pretrained(dense_pairs("olmo2")[0]).to(torch.bfloat16)
    anchor.save_pretrained(tmp_path / "anchor")
    plan = plan_branch(BranchRecipe(str(tmp_path / "anchor"), "math"))
    write_branch(plan, tmp_path / "branch")
    out = _trained(tmp_path / "branch", tmp_path / "new", lambda model: model.float())
    with pytest.raises(BranchError, match="in F32; save the branch in BF16"):
        verify_branch(out, tmp_path / "branch")


def test_what_is_no_trained_copy_is_refused(branch, dense_pairs, tmp_path):
    with pytest.raises(BranchError, match=r"has a branch\.json of its own; drop --original"):
        verify_branch(branch, branch)
    with pytest.raises(BranchError, match=r"has no branch\.json"):
        verify_branch(dense_pairs("llama")[0])
    with pytest.raises(BranchError, match=r"has 0 experts per layer, .* has 2"):
        verify_branch(dense_pairs("llama")[0], branch)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(CheckpointError):
        verify_branch(tmp_path / "nothing", branch)


@pytest.mark.parametrize("part", ["frozen", "shared"])
def test_a_manifest_must_have_a_hash_of_all_that_may_not_move(part, branch):
    manifest = read_manifest(branch)
    hashes = getattr(manifest, part)
    first = next(iter(hashes))
    fewer = {name: own for name, own in hashes.items() if name != first}
    write_manifest(branch, replace(manifest, **{part: fewer}))
    with pytest.raises(BranchError, match=re.escape(f"has no hash of {first.partition('[')[0]}")):
        verify_branch(branch)
    write_manifest(branch, replace(manifest, **{part: hashes | {"model.gone": "0"}}))
    with pytest.raises(BranchError, match=r"branch: lacks model\.gone, which branch\.json names"):
        verify_branch(branch)


def test_a_branch_that_was_trained_to_nonsense_is_refused(branch, tmp_path):
    def change(model):
        model.model.layers[1].mlp.experts.down_proj[1, 3, 2] = torch.nan

    out = _trained(branch, tmp_path / "new", change)
    named = r"layers\.1\.block_sparse_moe\.experts\.1\.w2\.weight holds values that are not finite"
    with pytest.raises(BranchError, match=named):
        verify_branch(out, branch)
    assert not (out / BRANCH).exists()


def test_a_home_folder_is_found(branch, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert verify_branch("~/branch").domain == "math"
