import json

import pytest

from moegraft.bar.adapt import adapt, plan_adapt
from moegraft.bar.append import plan_append, write_append
from moegraft.bar.branch import BranchRecipe
from moegraft.bar.stages import SILENT_BALANCE, SILENT_EPSILON, AdaptRecipe, StageRecipe
from moegraft.config import parse_recipe
from moegraft.errors import RecipeError
from tiny_families import data, stored_tensors

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
QUICK = {"steps": 80, "batch": 2, "length": 24, "learning_rate": 1e-3, "warmup_share": 0.0}


@pytest.fixture(scope="module")
def places(word_moe, tmp_path_factory):
    """A branch of a MoE whose new expert is silent, and text of its domain."""
    root = tmp_path_factory.mktemp("reach")
    words = [{"text": " ".join(f"w{(3 * i + j) % 37 + 3}" for j in range(9))} for i in range(30)]
    (root / "text.jsonl").write_text("\n".join(map(json.dumps, words)))
    read = [f"w2 {line['text']} w2" for line in words] + [f"w{word}" for word in range(40)]
    (root / "probe.txt").write_text("\n\n".join(read))
    recipe = BranchRecipe(str(word_moe), "math", probe=str(root / "probe.txt"))
    write_append(plan_append(recipe), root / "branch")
    return root


def recipe(places, **more):
    stage = StageRecipe("mid", (str(places / "text.jsonl"),), **{**QUICK, **more})
    return AdaptRecipe(str(places / "branch"), (stage,), device="cpu")


def test_adapt_brings_tokens_to_a_silent_expert_and_leaves_the_host_alone(places, tmp_path):
    manifest = adapt(recipe(places, weight_decay=0.1), tmp_path / "run")
    (stage,) = manifest.stages
    assert stage["reached"]["before"] == [0, 0]
    assert min(stage["reached"]["after"]) > 0
    assert stage["options"]["epsilon"] == SILENT_EPSILON
    assert min(stage["options"]["router_rates"]) > 1e-3
    assert stage["options"]["router"] == {"balance": SILENT_BALANCE, "z": 1e-3}
    before, after = stored_tensors(places / "branch"), stored_tensors(tmp_path / "run/branch")
    for name, old in before.items():
        if ".experts.4." not in name:
            kept = 4 if ".gate." in name else len(old)
            assert data(old[:kept]) == data(after[name][:kept]), name
    for layer in (0, 1):
        assert after[f"model.layers.{layer}.mlp.experts.4.down_proj.weight"].any()


def test_without_the_balance_loss_the_expert_stays_silent(places, tmp_path):
    manifest = adapt(recipe(places, balance_loss=0.0, steps=5), tmp_path / "run")
    assert manifest.stages[0]["reached"] == {"before": [0, 0], "after": [0, 0]}
    assert manifest.stages[0]["options"]["epsilon"] == 1e-8


def test_the_plan_says_what_reaches_the_expert_and_the_recipe_overrides_it(places):
    (row,) = plan_adapt(recipe(places))
    assert row["reach"] == {"balance_loss": SILENT_BALANCE, "epsilon": SILENT_EPSILON}
    (row,) = plan_adapt(recipe(places, balance_loss=0.5, epsilon=1e-12))
    assert row["reach"] == {"balance_loss": 0.5, "epsilon": 1e-12}
    stage = StageRecipe("mid", ("x",), learning_rate=1e-3).reaching()
    assert stage.rate_of_rows(200, 0.1) == 4 * 0.1 / 200
    assert stage.rate_of_rows(2000, 0.1) is None  # its own rate is enough
    assert StageRecipe("mid", ("x",)).rate_of_rows(200, 0.1) is None
    assert StageRecipe("mid", ("x",), router_rate=0.1).rate_of_rows(200, 0.0) == 0.1
    rl = {"branch": "b", "stages": [{"stage": "rl", "data": ["x"], "balance_loss": 0.1}]}
    with pytest.raises(RecipeError, match="rl: balance_loss is for mid and sft"):
        parse_recipe(rl, AdaptRecipe, where="recipe.yaml")
