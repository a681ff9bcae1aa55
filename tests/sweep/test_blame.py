"""`run_blame` on real tiny models: what it writes, and what it must leave alone."""

import json
import re

import pytest

from moegraft.checkpoint import open_checkpoint
from moegraft.config import load_recipe, parse_recipe
from moegraft.errors import EvalDataError, MoegraftError, OutputError, RecipeError
from moegraft.evals.condition import Item
from moegraft.evals.execution import Execution
from moegraft.sweep.blame import BlameRecipe, run_blame, split_items
from moegraft.transfer.plan import plan_transfer
from moegraft.transfer.recipe import TransferRecipe
from moegraft.transfer.scope import Slot


@pytest.fixture(scope="module")
def how(tiny_tasks):
    return Execution(device="cpu", include=(tiny_tasks,), command="moegraft blame ...")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, chat_pair, how):
    """A finished attribution over experts: its folder, content, and steps."""
    out, steps = tmp_path_factory.mktemp("blame") / "out", []
    recipe = BlameRecipe(*map(str, chat_pair), "tiny_choose", items=8, top=3)
    content = run_blame(recipe, out, how, on_step=steps.append)
    return out, content, steps


def test_it_writes_a_table_a_map_the_data_and_a_recipe(finished):
    out, content, _ = finished
    assert {path.name for path in out.iterdir()} == {
        "blame.json",
        "blame.md",
        "blame.svg",
        "recipe.yaml",
    }
    assert json.loads((out / "blame.json").read_text()) == content
    assert content["schema"] == 1
    assert len(content["units"]) == 8
    assert len(content["slots"]) > 8
    assert content["command"] == "moegraft blame ..."


def test_it_says_by_how_much_the_attributions_miss_the_difference(finished):
    content = finished[1]
    measured = content["measured"]
    assert measured["difference"] == pytest.approx(measured["donor"] - measured["host"])
    total = sum(slot["value"] for slot in content["slots"])
    error = content["attributed"]["completeness_error"]
    assert error == pytest.approx(total - measured["difference"])
    assert f"miss the measured difference by {error:+.3g}" in (finished[0] / "blame.md").read_text()


def test_ranking_and_confirmation_share_no_item(finished):
    items = finished[1]["items"]
    assert len(items["ranking"]) == len(items["confirmation"]) == 8
    assert set(items["ranking"]).isdisjoint(items["confirmation"])


def test_the_top_units_are_confirmed_as_one_family(finished):
    content = finished[1]
    found = content["confirmed"]
    assert [unit["value"] for unit in content["top"]] == sorted(
        (u["value"] for u in content["units"] if u["value"] > 0), reverse=True
    )[:3]
    for unit in found["units"]:
        assert unit["p"] <= unit["p_holm"] <= 1
        assert unit["interval"][0] <= unit["effect"] <= unit["interval"][1]
        assert unit["confirmed"] == (unit["effect"] > 0 and unit["p_holm"] < 0.05)
    assert found["num_items"] == 8
    assert found["scores"]["metric"] == "acc"


def test_a_transfer_of_the_recipe_moves_the_top_units(finished, chat_pair):
    recipe = load_recipe(finished[0] / "recipe.yaml", TransferRecipe)
    opened = [open_checkpoint(str(path)) for path in chat_pair]
    plan = plan_transfer(recipe, opened[0], {"donor": opened[1]})
    top = {Slot(u["component"], u["layer"], u["expert"]) for u in finished[1]["top"]}
    assert set(plan.moves) == top


def test_progress_is_told_to_the_end(finished):
    for stage in ("ranking", "confirmation"):
        steps = [step for step in finished[2] if step.stage == stage]
        assert [step.done for step in steps] == [*range(1, steps[0].total + 1)]


def test_the_report_does_not_measure_importance_by_weights(finished):
    for name in ("blame.md", "blame.svg", "recipe.yaml"):
        text = (finished[0] / name).read_text()
        assert not re.search(r"\b(norm of the|distance|far apart)\b", text)


@pytest.mark.parametrize("method", ["gradient", "swap"])
def test_other_methods_rank_behind_the_same_interface(tmp_path, chat_pair, how, method):
    recipe = BlameRecipe(
        *map(str, chat_pair), "tiny_write", units="components", items=4, top=2, method=method
    )
    content = run_blame(recipe, tmp_path / "out", how)
    assert {u["component"] for u in content["units"]} == {
        *("embedding", "attention", "router", "experts", "norm", "lm_head")
    }
    assert (content["attributed"] is None) == (method == "swap")


def test_a_donor_that_is_worse_is_said_to_be(finished):
    content = finished[1]
    said = any("the donor is not better" in note for note in content["notes"])
    assert said == (content["measured"]["difference"] <= 0)


def test_equal_models_have_nothing_to_blame(tmp_path, chat_pair, how):
    same = str(chat_pair[0])
    with pytest.raises(EvalDataError, match="no unit of the donor raises the gold answers"):
        run_blame(BlameRecipe(same, same, "tiny_choose", items=4), tmp_path / "out", how)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_refused(finished, chat_pair, how):
    recipe = BlameRecipe(*map(str, chat_pair), "tiny_choose", items=4)
    with pytest.raises(OutputError, match="not empty"):
        run_blame(recipe, finished[0], how)


def test_what_cannot_be_used_is_refused_in_one_line():
    given = {"host": "a", "donor": "b", "condition": "c"}
    for bad, message in (
        ({"items": 0}, "items: expected at least 1, got 0"),
        ({"units": "heads"}, "units"),
        ({"method": "norm"}, "method"),
        ({"tops": 3}, "tops: unknown key"),
    ):
        with pytest.raises(RecipeError, match=message):
            parse_recipe(given | bad, BlameRecipe, where="blame")


def item(name, cluster=None) -> Item:
    return Item(name, {}, "", (), name, "", cluster)


def test_items_that_share_a_passage_with_a_ranking_item_confirm_nothing():
    items = [item("a", "x"), item("b"), item("c", "x"), item("d", "y"), item("e")]
    first, second = split_items(items, 2, 5)
    assert ["".join(i.hash for i in part) for part in (first, second)] == ["ab", "de"]
    with pytest.raises(EvalDataError, match="too few to rank on 4"):
        split_items(items, 4, 1)


def test_an_interruption_leaves_nothing_behind(tmp_path, chat_pair, how):
    def stop(step):
        raise KeyboardInterrupt

    recipe = BlameRecipe(*map(str, chat_pair), "tiny_choose", items=4)
    with pytest.raises(KeyboardInterrupt):
        run_blame(recipe, tmp_path / "out", how, on_step=stop)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_condition_is_named(tmp_path, chat_pair, how):
    recipe = BlameRecipe(*map(str, chat_pair), "no_such_task.yaml", items=4)
    with pytest.raises(MoegraftError, match="no such task file"):
        run_blame(recipe, tmp_path / "out", how)
