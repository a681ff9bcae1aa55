import math

import pytest

from moegraft.bar.stages import AdaptRecipe
from moegraft.config import parse_recipe
from moegraft.errors import RecipeError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"stages": []}, "stages: expected at least one of mid, sft, dpo, rl"),
        ({"stages": [{"stage": "mid", "data": []}]}, "mid: data: expected at least one"),
        ({"stages": [{"stage": "pre", "data": ["x"]}]}, r"stages.0.stage: .*'rl'"),
        (
            {"stages": [{"stage": s, "data": ["x"]} for s in ("sft", "mid")]},
            "each once, in the order mid, sft, dpo, rl: sft, mid",
        ),
        ({"stages": [{"stage": "mid", "data": ["x"], "lr": 1}]}, "stages.0.lr: unknown key"),
        (
            {"stages": [{"stage": "mid", "data": ["x"], "steps": 1, "epochs": 2}]},
            "steps and epochs: expected one of them",
        ),
        (
            {"stages": [{"stage": "rl", "data": ["x"], "tokens": 10}]},
            "rl: tokens is for mid and sft",
        ),
        (
            {"stages": [{"stage": "sft", "data": ["x"], "general_share": 0.5}]},
            "general_share has no effect without general data",
        ),
        (
            {"stages": [{"stage": "sft", "data": ["x"], "general": ["y"], "general_share": 0}]},
            "general_share: expected a share above 0 and below 1, got 0",
        ),
        ({"stages": [{"stage": "sft", "data": [""]}]}, "sft: data: .*got an empty name"),
        (
            {"stages": [{"stage": "sft", "data": ["x"], "epochs": math.inf}]},
            "sft: epochs: expected more than 0, got inf",
        ),
        (
            {"stages": [{"stage": "sft", "data": ["x"], "clip": math.nan}]},
            "sft: clip: expected 0 or more, got nan",
        ),
        ({"stages": [{"stage": "mid", "data": ["x"]}], "seed": -1}, "seed: expected 0 or more"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(content, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe({"branch": "b", **content}, AdaptRecipe, where="recipe.yaml")
