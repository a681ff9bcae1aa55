"""Invariant 2: the checkpoint that a plan writes and the live model patched by it agree bitwise."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from moegraft.checkpoint import open_checkpoint
from moegraft.runtime import Host
from moegraft.transfer import Selection, TransferRecipe, apply_plan, patches, plan_transfer
from tiny_families import build_tiny, tiny_model

INPUT_IDS = torch.arange(3, 43).reshape(2, 20)
FAMILIES = ("olmoe", "mixtral", "qwen3_moe", "gpt_oss", "qwen3_5_moe_text", "deepseek_v3")

SELECTIONS = {
    "router": (Selection(("router",)),),
    "attention": (Selection(("attention",)),),
    "experts": (Selection(("experts",)),),
    "rest": (Selection(("rest",)),),
    "all": (Selection(("all",)),),
    "one layer": (Selection(("experts", "attention"), layers="1"),),
    "single experts": (Selection(("experts[0,2-3]",), layers="1"),),
    "linear": (Selection(("attention", "router"), rule="linear", weight=0.25),),
    "slerp of single experts": (
        Selection(("experts[1]",), rule="slerp", weight=0.5),
        Selection(("experts[0]", "norm")),
    ),
    "linear all": (Selection(("all",), rule="linear", weight=0.75),),
}


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, tmp_path_factory):
    """A live host with one donor, in the family's published layout."""
    root = tmp_path_factory.mktemp(request.param)
    tiny_model(request.param).save_pretrained(root / "host")
    build_tiny(request.param, seed=7).save_pretrained(root / "donor")
    return Host.load(str(root / "host"), {"d": str(root / "donor")})


def plan_for(host, selections):
    donors = host.donor_checkpoints
    recipe = TransferRecipe(host.checkpoint.source, {"d": donors["d"].source}, selections)
    return plan_transfer(recipe, host.checkpoint, donors)


def logits(model):
    with torch.no_grad():
        return model(INPUT_IDS).logits


@pytest.mark.parametrize("name", SELECTIONS)
def test_written_and_patched_models_give_the_same_logits(loaded, name, tmp_path):
    plan = plan_for(loaded, SELECTIONS[name])
    written, info = AutoModelForCausalLM.from_pretrained(
        apply_plan(plan, tmp_path / "out"),
        output_loading_info=True,
        experts_implementation=loaded.model.config._experts_implementation,
    )
    assert not any(info.values()), info
    before = logits(loaded.model)
    with loaded.with_patches(patches(plan, loaded)) as live:
        patched = logits(live)
    assert torch.equal(patched, logits(written.eval()))
    assert not torch.equal(patched, before)
    assert torch.equal(logits(loaded.model), before)


def test_bfloat16_mixes_are_rounded_once_and_agree(tmp_path, make_olmoe):
    paths = [make_olmoe(tmp_path / n, seed=i, dtype="bfloat16") for i, n in enumerate("ab")]
    for rule in ("linear", "slerp"):
        host = Host.load(str(paths[0]), {"d": str(paths[1])})
        plan = plan_for(host, (Selection(("all",), rule=rule, weight=0.3),))
        written = apply_plan(plan, tmp_path / rule)
        live = AutoModelForCausalLM.from_pretrained(written, experts_implementation="eager")
        with host.with_patches(patches(plan, host)) as patched:
            assert torch.equal(logits(patched), logits(live.eval()))


def test_a_fused_donor_patches_a_published_host(tmp_path, olmoe_pair):
    from safetensors.torch import save_file

    donor = AutoModelForCausalLM.from_pretrained(olmoe_pair[1])
    (tmp_path / "fused").mkdir()
    save_file(dict(donor.state_dict()), tmp_path / "fused/model.safetensors", {"format": "pt"})
    donor.config.save_pretrained(tmp_path / "fused")
    host = Host.load(str(olmoe_pair[0]), {"d": str(tmp_path / "fused")})
    plan = plan_for(host, (Selection(("experts[1-2]", "router"), layers="0"),))
    written = AutoModelForCausalLM.from_pretrained(
        apply_plan(plan, tmp_path / "out"), experts_implementation="eager"
    )
    assert open_checkpoint(tmp_path / "out").layout == "published"
    with host.with_patches(patches(plan, host)) as live:
        assert torch.equal(logits(live), logits(written.eval()))


def test_one_mixed_checkpoint_cannot_be_patched_from_another_host(olmoe_pair, tmp_path, make_olmoe):
    host = Host.load(str(olmoe_pair[0]), {"d": str(olmoe_pair[1])})
    other = open_checkpoint(str(make_olmoe(tmp_path / "other", seed=9)))
    recipe = TransferRecipe("host", {"d": "other"}, (Selection(("router",)),))
    plan = plan_transfer(recipe, host.checkpoint, {"d": other})
    with pytest.raises(ValueError, match=r"the plan takes 'd' from .*load both from the same"):
        patches(plan, host)
