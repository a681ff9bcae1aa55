import shutil

import pytest

from moegraft.bar.append import plan_append, write_append
from moegraft.bar.branch import BranchRecipe, plan_branch, write_branch
from moegraft.bar.merge import MergeRecipe, plan_merge, write_merge
from moegraft.bar.upgrade import plan_revision
from moegraft.errors import RecipeError
from tiny_bar import card_of, train_branch

STAGE = {
    "stage": "sft",
    "tokens": 1234,
    "data": [{"part": "domain", "sources": ["org/chats:en", "chat.jsonl"]}],
}


def licensed(folder, licence):
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")


@pytest.fixture
def pair(dense_pairs, tmp_path):
    """An anchor and a pretrained model under one licence."""
    for name, source in zip(("anchor", "base"), dense_pairs("olmo2"), strict=True):
        shutil.copytree(source, tmp_path / name)
        licensed(tmp_path / name, "mit")
    return tmp_path / "anchor", tmp_path / "base"


def branch(pair, out, domain="math", **more):
    recipe = BranchRecipe(str(pair[0]), domain, pretrained=str(pair[1]), **more)
    write_branch(plan_branch(recipe), out)
    return out


def test_a_branch_and_a_merge_say_what_they_are_made_of(pair, tmp_path):
    start = branch(pair, tmp_path / "start")
    card = card_of(start, ["anchor", "base"], "merge")
    assert card.data.license == "mit"
    assert "It has not been trained yet." in card.text
    train_branch(start, tmp_path / "math", stages=(STAGE,))
    plan = plan_merge(MergeRecipe(str(pair[0]), (str(tmp_path / "math"),)))
    write_merge(plan, tmp_path / "merged")
    card = card_of(tmp_path / "merged", ["anchor", "base"], "merge")
    assert card.data.license == "mit"
    assert card.data.datasets == ["org/chats"]
    assert "| 1 | math | sft 1,234 tokens |" in card.text
    assert "Routers are untrained." in card.text


def test_a_branch_of_a_moe_is_a_finetune_of_its_host(word_moe, tmp_path):
    write_append(plan_append(BranchRecipe(str(word_moe), "math")), tmp_path / "b")
    card = card_of(tmp_path / "b", ["host"], "finetune")
    assert "1 of 5 experts per layer were appended to `host`" in card.text
    assert "The sources' model cards state no licence." in card.text


def test_dense_models_are_bases_of_their_merge(pair, tmp_path):
    recipe = MergeRecipe(str(pair[0]), (f"math={pair[1]}",), method="average")
    write_merge(plan_merge(recipe), tmp_path / "mean")
    card = card_of(tmp_path / "mean", ["anchor", "base"], "merge")
    assert "moe" not in card.data.tags and "| averaged | math |" in card.text


def test_licences_that_differ_stop_before_anything_is_written(pair, tmp_path):
    start = branch(pair, tmp_path / "start")
    licensed(pair[1], "gpl-3.0")
    with pytest.raises(RecipeError, match=r"differ \(anchor: mit, pretrained: gpl-3.0\)"):
        branch(pair, tmp_path / "b")
    told = branch(pair, tmp_path / "told", "code", licence="gpl-3.0")
    assert card_of(told, ["anchor", "base"], "merge").data.license == "gpl-3.0"
    for source, name in ((start, "math"), (told, "code")):
        train_branch(source, tmp_path / name)
        shutil.copyfile(source / "README.md", tmp_path / name / "README.md")
    shutil.rmtree(start)
    branches = (str(tmp_path / "math"),)
    write_merge(plan_merge(MergeRecipe(str(pair[0]), branches)), tmp_path / "one")
    with pytest.raises(RecipeError, match=r"differ \(anchor: mit, math: mit, code: gpl-3.0\)"):
        plan_merge(plan_revision(tmp_path / "one", "add", branch=tmp_path / "code").recipe)
    change = plan_revision(tmp_path / "one", "add", branch=tmp_path / "code", licence="gpl-3.0")
    write_merge(plan_merge(change.recipe), tmp_path / "two")
    assert card_of(tmp_path / "two", ["anchor", "base"], "merge").data.license == "gpl-3.0"
