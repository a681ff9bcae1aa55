"""Units of attribution, and the recipes that move them."""

from pathlib import Path

import pytest

from moegraft.checkpoint import open_checkpoint
from moegraft.config import dump_recipe, load_recipe
from moegraft.errors import RecipeError
from moegraft.sweep.units import fold, recipe_of, units_of
from moegraft.transfer.plan import plan_transfer
from moegraft.transfer.recipe import TransferRecipe
from moegraft.transfer.scope import Slot


@pytest.fixture(scope="module")
def checkpoints(olmoe_pair):
    return tuple(open_checkpoint(str(path)) for path in olmoe_pair)


def moved(recipe, checkpoints) -> set[Slot]:
    return set(plan_transfer(recipe, checkpoints[0], {"donor": checkpoints[1]}).moves)


def test_experts_are_units_one_by_one(checkpoints):
    units = units_of(checkpoints[0], "experts")
    assert units == [Slot("experts", layer, e) for layer in range(2) for e in range(8)]


def test_components_are_units_by_layer_and_q_k_norms_count_with_attention(checkpoints):
    units = units_of(checkpoints[0], "components")
    assert [str(unit) for unit in units if unit.layer in (None, 0)] == [
        "embedding",
        "attention of layer 0",
        "router of layer 0",
        "experts of layer 0",
        "norm of layer 0",
        "lm_head",
    ]
    own = units_of(checkpoints[0], "components", "own")
    assert Slot("qk_norm", 1, None) in own
    assert len(own) == len(units) + 2


def test_a_dense_checkpoint_has_no_expert_units(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="choose units components"):
        units_of(open_checkpoint(str(tmp_path)), "experts")


def test_each_unit_moves_alone(checkpoints):
    for grain in ("experts", "components"):
        for unit in units_of(checkpoints[0], grain):
            found = moved(recipe_of("h", "d", [unit]), checkpoints)
            assert found
            for slot in found:
                assert slot.layer == unit.layer
                assert unit.expert in (None, slot.expert)
                assert slot.component in (unit.component, "qk_norm")


def test_a_recipe_survives_its_file_and_moves_just_the_units(checkpoints, tmp_path):
    units = [
        Slot("experts", 1, 3),
        Slot("experts", 0, 3),
        Slot("experts", 0, 5),
        Slot("attention", 0, None),
        Slot("router", 0, None),
        Slot("lm_head", None, None),
    ]
    recipe = recipe_of("h", "d", units)
    path = Path(tmp_path / "recipe.yaml")
    path.write_text(dump_recipe(recipe))
    again = load_recipe(path, TransferRecipe)
    assert again == recipe
    expected = {*units, Slot("qk_norm", 0, None)}
    assert moved(again, checkpoints) == expected
    assert [str(s) for s in recipe.selections] == [
        "experts[3] in layers 1",
        "experts[3,5] in layers 0",
        "attention, router in layers 0",
        "lm_head",
    ]


def test_equal_choices_of_several_layers_share_a_selection():
    units = [Slot("experts", layer, e) for layer in (0, 1, 2, 5) for e in (1, 2)]
    (selection,) = recipe_of("h", "d", units).selections
    assert str(selection) == "experts[1-2] in layers 0-2,5"


def test_values_fold_into_units_and_nothing_counts_twice(checkpoints):
    values = {
        Slot("experts", 0, 1): 1.0,
        Slot("experts", 0, 2): 2.0,
        Slot("attention", 0, None): 4.0,
        Slot("qk_norm", 0, None): 8.0,
        Slot("norm", None, None): 16.0,
    }
    by_component = fold(values, units_of(checkpoints[0], "components"), checkpoints[0])
    assert by_component[Slot("experts", 0, None)] == 3.0
    assert by_component[Slot("attention", 0, None)] == 12.0
    assert sum(by_component.values()) == 15.0  # the last norm cannot move alone
    by_expert = fold(values, units_of(checkpoints[0], "experts"), checkpoints[0])
    assert (by_expert[Slot("experts", 0, 2)], sum(by_expert.values())) == (2.0, 3.0)
