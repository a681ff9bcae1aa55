"""Invariant 9: with every expert the anchor's FFN and all active, the MoE computes the anchor.

Tolerance: 1e-5 of the largest float32 logit. The weights of a softmax add up to 1 but for
rounding, and a fused gate and up projection is one matrix product where the anchor has two.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM

from moegraft.bar.branch import BranchRecipe, plan_branch, write_branch
from moegraft.bar.merge import MergeRecipe, plan_merge, write_merge
from moegraft.bar.twin import TWINS
from tiny_families import build_tiny

IDS = torch.arange(3, 43).reshape(2, 20)
SIZES = {"llama": {"attention_bias": False, "mlp_bias": False}, "mistral": {"sliding_window": 8}}


def logits(folder):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits


@pytest.mark.parametrize("router", ["normal", "zero"])
@pytest.mark.parametrize("model_type", TWINS)
def test_a_branch_of_two_anchor_ffns_is_the_anchor(model_type, router, tmp_path):
    build_tiny(model_type, **SIZES.get(model_type, {})).save_pretrained(tmp_path / "anchor")
    recipe = BranchRecipe(str(tmp_path / "anchor"), "any", router=router)
    write_branch(plan_branch(recipe), tmp_path / "branch")
    check_equal(tmp_path / "anchor", tmp_path / "branch")


@pytest.mark.parametrize("model_type", TWINS)
def test_a_merge_of_untrained_branches_is_the_anchor(model_type, tmp_path):
    build_tiny(model_type, **SIZES.get(model_type, {})).save_pretrained(tmp_path / "anchor")
    for seed, domain in enumerate("abc"):
        recipe = BranchRecipe(str(tmp_path / "anchor"), domain, seed=seed)
        write_branch(plan_branch(recipe), tmp_path / domain)
    branches = tuple(str(tmp_path / domain) for domain in "abc")
    write_merge(plan_merge(MergeRecipe(str(tmp_path / "anchor"), branches)), tmp_path / "merged")
    check_equal(tmp_path / "anchor", tmp_path / "merged")


def check_equal(anchor, moe):
    expected = logits(anchor)
    assert (logits(moe) - expected).abs().max() <= 1e-5 * expected.abs().max()
