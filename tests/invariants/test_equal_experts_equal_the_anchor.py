"""Invariant 9: with every expert the anchor's FFN and all active, the MoE computes the anchor.

Tolerance: 1e-5 of the largest float32 logit. The weights of a softmax add up to 1 but for
rounding, and a fused gate and up projection is one matrix product where the anchor has two.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM

from moegraft.bar.branch import BranchRecipe, plan_branch, write_branch
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
    expected = logits(tmp_path / "anchor")
    difference = (logits(tmp_path / "branch") - expected).abs().max()
    assert difference <= 1e-5 * expected.abs().max()
