import json
import shutil

import pytest
import torch

from moegraft.bar.branch import BranchRecipe, plan_branch, write_branch
from moegraft.bar.merge import plan_merge, write_merge
from moegraft.bar.record import read_record
from moegraft.bar.upgrade import plan_revision
from moegraft.errors import BranchError
from tiny_bar import build_merged, train_branch
from tiny_families import stored_tensors

UP = "model.layers.1.mlp.experts.{}.up_proj.weight".format
GATE = "model.layers.1.mlp.gate.weight"


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """A merged model of `math` and `code`, with a better `code` and a new `tool` beside it."""
    root = tmp_path_factory.mktemp("deployed")
    build_merged(root)
    train_branch(root / "code-start", root / "code-2", seed=9)
    write_branch(plan_branch(BranchRecipe(str(root / "anchor"), "tool")), root / "tool-start")
    train_branch(root / "tool-start", root / "tool", seed=5)
    return root / "merged"


def revise(deployed, change, out, **what):
    revision = plan_revision(deployed, change, **what)
    return revision, write_merge(plan_merge(revision.recipe), out)


def test_an_upgrade_changes_its_expert_and_nothing_else(deployed, tmp_path):
    revision, record = revise(
        deployed, "upgrade", tmp_path / "m", branch=deployed.parent / "code-2"
    )
    before, after = stored_tensors(deployed), stored_tensors(tmp_path / "m")
    new = stored_tensors(deployed.parent / "code-2")
    assert (revision.domain, record.domains) == ("code", ("math", "code"))
    for name, tensor in before.items():
        if ".experts.2." in name:
            assert torch.equal(after[name], new[name.replace("experts.2", "experts.1")])
        elif name.endswith(".gate.weight"):
            assert torch.equal(after[name][:2], tensor[:2])
            assert torch.equal(after[name][2], new[name][1])
        else:
            assert torch.equal(after[name], tensor), name


def test_a_domain_is_added_behind_the_others_and_can_be_removed_again(deployed, tmp_path):
    _, record = revise(deployed, "add", tmp_path / "three", branch=deployed.parent / "tool")
    assert record.domains == ("math", "code", "tool")
    three, tool = stored_tensors(tmp_path / "three"), stored_tensors(deployed.parent / "tool")
    assert torch.equal(three[UP(3)], tool[UP(1)])
    assert three[GATE].shape[0] == 4
    _, record = revise(tmp_path / "three", "remove", tmp_path / "two", domain="tool")
    two, before = stored_tensors(tmp_path / "two"), stored_tensors(deployed)
    assert two.keys() == before.keys()
    assert all(torch.equal(two[name], before[name]) for name in two)
    assert read_record(tmp_path / "two") == record
    _, record = revise(tmp_path / "three", "remove", tmp_path / "other", domain="math")
    assert record.domains == ("code", "tool")
    assert torch.equal(stored_tensors(tmp_path / "other")[UP(2)], tool[UP(1)])


def test_the_policies_of_the_first_merge_are_kept(deployed, tmp_path):
    file = deployed / "merge.json"
    text = file.read_text()
    content = json.loads(text)
    content["shared"] = {"default": "anchor", "lm_head": "changed"}
    file.write_text(json.dumps(content))
    revision = plan_revision(deployed, "add", branch=deployed.parent / "tool")
    file.write_text(text)
    assert revision.recipe.shared == "anchor"
    assert revision.recipe.shared_by == {"lm_head": "changed"}
    file.write_text(json.dumps(content | {"shared": {"default": "often"}}))
    with pytest.raises(BranchError, match=r"merge\.json: shared: unknown policy 'often'"):
        plan_revision(deployed, "add", branch=deployed.parent / "tool")
    file.write_text(text)


def test_changes_that_do_not_fit_are_refused(deployed, tmp_path):
    root = deployed.parent
    for change, what, message in (
        ("add", {"branch": root / "code-2"}, "has a branch for 'code' already; expected `bar upg"),
        ("upgrade", {"branch": root / "tool"}, "has no domain 'tool'; expected one of math, code"),
        ("remove", {"domain": "tool"}, "has no domain 'tool'"),
        ("remove", {"domain": "math", "moved": {"tool": "x"}}, "has no domain 'tool'; expected s"),
    ):
        with pytest.raises(BranchError, match=message):
            plan_revision(deployed, change, **what)
    with pytest.raises(BranchError, match=r"has no merge\.json"):
        plan_revision(root / "anchor", "remove", domain="math")
    revise(deployed, "remove", tmp_path / "one", domain="code")
    with pytest.raises(BranchError, match="'math' is its only domain; use its anchor"):
        plan_revision(tmp_path / "one", "remove", domain="math")


def test_a_branch_that_was_replaced_or_moved_away_is_noticed(deployed, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(deployed.parent, root)
    merged = root / "merged"
    (root / "math").rename(root / "elsewhere")
    with pytest.raises(BranchError, match=r"its branch for 'math' is not at .*--where math=FOLDER"):
        plan_revision(merged, "upgrade", branch=root / "code-2")
    found = {"math": str(root / "elsewhere")}
    revision = plan_revision(merged, "upgrade", branch=root / "code-2", moved=found)
    assert str(root / "elsewhere") in revision.recipe.branches
    train_branch(root / "math-start", root / "math", seed=77)
    with pytest.raises(BranchError, match=r"is not the branch for 'math' that .* records"):
        plan_revision(merged, "upgrade", branch=root / "code-2")
