import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moegraft.bar.append import plan_append, write_append
from moegraft.bar.branch import BranchRecipe
from moegraft.bar.distance import PROBES, logits_of, probe_ids
from moegraft.bar.merge import MergeRecipe, plan_merge, write_merge
from moegraft.checkpoint import open_checkpoint
from moegraft.errors import BranchError
from tiny_bar import train_branch
from tiny_families import stored_tensors

UP = "model.layers.1.mlp.experts.{}.up_proj.weight".format
GATE = "model.layers.1.mlp.gate.weight"


@pytest.fixture(scope="module")
def branches(word_moe, tmp_path_factory):
    """Branches of a MoE with four experts: `math` has one, `tool` two and a new token."""
    root = tmp_path_factory.mktemp("appended")
    for domain, count, tokens in (("math", 1, ()), ("tool", 2, ("<call>",))):
        recipe = BranchRecipe(str(word_moe), domain, experts=count, new_tokens=tokens)
        write_append(plan_append(recipe), root / f"{domain}-start")
        own = tuple(range(4, 4 + count))
        train_branch(root / f"{domain}-start", root / domain, experts=own)
    return [root / "math", root / "tool"]


def merge(host, branches, out, **recipe):
    plan = plan_merge(MergeRecipe(str(host), tuple(map(str, branches)), **recipe))
    return write_merge(plan, out)


def test_all_appended_experts_stand_behind_the_hosts(word_moe, branches, tmp_path):
    record = merge(word_moe, branches, tmp_path / "m")
    host, math, tool = (stored_tensors(path) for path in (word_moe, *branches))
    merged = stored_tensors(tmp_path / "m")
    for expert in range(4):
        assert torch.equal(merged[UP(expert)], host[UP(expert)])
    assert torch.equal(merged[UP(4)], math[UP(4)])
    assert torch.equal(merged[UP(5)], tool[UP(4)])
    assert torch.equal(merged[UP(6)], tool[UP(5)])
    assert torch.equal(merged[GATE], torch.cat([host[GATE], math[GATE][4:], tool[GATE][4:]]))
    assert [expert["experts"] for expert in record.experts] == [[4], [5, 6]]
    assert (record.method, record.tokens) == ("appended", {"<call>": 40})
    head = merged["lm_head.weight"]
    assert torch.equal(head[40], tool["lm_head.weight"][40])
    assert torch.equal(head[:40], host["lm_head.weight"][:40])
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(info.values()), info
    assert (model.config.num_experts, model.config.num_experts_per_tok) == (7, 2)
    ids = torch.tensor(AutoTokenizer.from_pretrained(tmp_path / "m")("w3 <call> w9")["input_ids"])
    assert ids[1] == 40
    assert model.generate(ids[None], max_new_tokens=3, do_sample=False).shape[1] > 3


def test_silent_branches_merge_into_the_host_bit_for_bit(word_moe, branches, tmp_path):
    starts = [branch.parent / f"{branch.name}-start" for branch in branches]
    merge(word_moe, starts, tmp_path / "m")
    kept = json.loads((starts[0] / "branch.json").read_text())["start"]["layers"]
    assert all(layer["displaced"] == layer["loud"] == 0 for layer in kept)
    host, merged = open_checkpoint(word_moe), open_checkpoint(tmp_path / "m")
    ids = probe_ids(host, PROBES)
    ours, theirs = (torch.cat(logits_of(c, ids)) for c in (host, merged))
    assert torch.equal(ours[:, :40], theirs[:, :40])


def test_what_does_not_fit_a_moe_is_refused(word_moe, branches, dense_pairs, tmp_path):
    with pytest.raises(BranchError, match="method btx is for dense anchors"):
        merge(word_moe, branches, tmp_path / "m", method="btx")
    with pytest.raises(BranchError, match="as_released is for dense anchors"):
        merge(word_moe, branches, tmp_path / "m", as_released=True)
    train_branch(branches[0], tmp_path / "b", experts=(4,), shared=(UP(2),))
    with pytest.raises(BranchError, match=r"experts\.2\.up_proj\.weight is frozen but has moved"):
        merge(word_moe, [tmp_path / "b"], tmp_path / "m")
    with pytest.raises(BranchError, match="grew from another anchor"):
        merge(dense_pairs("olmo2")[0], branches, tmp_path / "m")
    assert not (tmp_path / "m").exists()
