import pytest
import torch

from moegraft.checkpoint import open_checkpoint
from moegraft.errors import IncompatibleError, RecipeError
from moegraft.families import Key
from moegraft.transfer import Selection, TransferRecipe, component_recipe, plan_transfer
from tiny_families import build_tiny, tiny_model


def counted(plan):
    return {(a.component, a.source): a.num_pieces for a in plan.accounts}


def test_every_tensor_of_host_and_donor_is_accounted_for(plan):
    made = plan("router", "experts[0-3]", layers="1")
    host, donor = made.host, made.donors["d"]
    assert sum(a.nbytes for a in made.accounts) == host.num_bytes == made.nbytes
    assert sum(a.num_pieces for a in made.accounts) == len(host.pieces())
    moved = sum(tensors for tensors, _, _ in made.selection_counts)
    assert moved == 1 + 4 * 3
    assert moved + sum(made.unused("d").values()) == len(donor.tensors)


def test_norms_of_queries_and_keys_move_with_attention_unless_told(plan):
    assert counted(plan("attention"))["qk_norm", "d"] == 4
    assert ("qk_norm", "d") not in counted(plan("attention", qk_norm="own"))
    alone = counted(plan("qk_norm", qk_norm="own"))
    assert alone["qk_norm", "d"] == 4
    assert ("attention", "d") not in alone


def test_whole_checkpoints_are_one_range_and_neighbours_join(plan):
    assert plan("all").num_ranges == 1
    assert plan("experts").num_ranges == 5


def test_a_plan_says_where_each_piece_comes_from(plan):
    made = plan("experts[2]", layers="0", rule="linear", weight=0.25)
    assert str(made.source(Key("experts", 0, 2, "gate.weight"))) == "linear 0.25 with d"
    assert made.source(Key("experts", 1, 2, "gate.weight")).name == "host"
    assert not made.copies_everything


@pytest.mark.parametrize(
    ("components", "options", "says"),
    [
        (["shared_experts"], {}, "no tensor of 'shared_experts'; it has: .*experts"),
        (["embedding"], {"layers": "0"}, "has no 'embedding' there; it is outside the layers"),
        (["router"], {"layers": "2"}, "layers 2: 2 is out of range, expected 0 to 1"),
        (["experts[8]"], {}, "experts 8: 8 is out of range, expected 0 to 7"),
    ],
)
def test_a_selection_that_matches_nothing_is_an_error(plan, components, options, says):
    with pytest.raises(RecipeError, match=says):
        plan(*components, **options)


def test_layers_without_the_component_name_those_that_have_it(tmp_path):
    tiny_model("qwen3_moe").save_pretrained(tmp_path / "h")
    checkpoint = open_checkpoint(str(tmp_path / "h"))
    recipe = TransferRecipe("h", {"d": "d"}, (Selection(("experts",), layers="0"),))
    with pytest.raises(RecipeError, match="has no 'experts' there; it is in layers 1"):
        plan_transfer(recipe, checkpoint, {"d": checkpoint})


def test_two_selections_of_one_piece_are_an_error(olmoe_pair):
    checkpoint = open_checkpoint(str(olmoe_pair[0]))
    selections = (Selection(("experts[3]",)), Selection(("experts",), layers="1"))
    recipe = TransferRecipe("h", {"d": "d"}, selections)
    with pytest.raises(RecipeError, match=r"selections 1 and 2 both move experts\[3\] of layer 1"):
        plan_transfer(recipe, checkpoint, {"d": checkpoint})


def test_several_donors_each_give_their_part(olmoe_pair, make_olmoe, tmp_path):
    third = make_olmoe(tmp_path / "third", seed=3)
    opened = [open_checkpoint(str(p)) for p in (*olmoe_pair, third)]
    selections = (
        Selection(("experts[0-3]",), "a"),
        Selection(("experts[4-7]", "router"), "b", layers="1"),
    )
    recipe = TransferRecipe("h", {"a": "a", "b": "b"}, selections)
    found = counted(plan_transfer(recipe, opened[0], {"a": opened[1], "b": opened[2]}))
    assert (found["experts", "a"], found["experts", "b"]) == (24, 12)
    assert (found["experts", "host"], found["router", "b"]) == (12, 1)


def test_a_tied_head_moves_with_the_embedding_and_never_alone(tmp_path):
    for seed, name in enumerate("hd"):
        build_tiny("qwen3", seed=seed).save_pretrained(tmp_path / name)
    host, donor = (open_checkpoint(str(tmp_path / name)) for name in "hd")
    with pytest.raises(RecipeError, match="lm_head: the host ties it to the embedding"):
        plan_transfer(component_recipe("h", "d", "lm_head"), host, {"donor": donor})
    made = plan_transfer(component_recipe("h", "d", "rest"), host, {"donor": donor})
    assert counted(made)["embedding", "donor"] == 1


def test_prediction_layers_always_stay_the_hosts(tmp_path):
    for seed, name in enumerate("hd"):
        model = build_tiny("deepseek_v3", seed=seed)
        model.config.num_nextn_predict_layers = 1
        extra = {f"model.layers.2.{part}": torch.ones(16) for part in ("enorm.weight",)}
        model.save_pretrained(tmp_path / name, state_dict=model.state_dict() | extra)
    host, donor = (open_checkpoint(str(tmp_path / name)) for name in "hd")
    found = counted(plan_transfer(component_recipe("h", "d", "donor"), host, {"donor": donor}))
    assert {component for component, source in found if source == "host"} == {"extra"}


def test_unknown_tensors_stay_the_hosts_and_are_listed(plan, vary):
    odd = vary("odd", tensors=lambda t: t | {"model.vision.weight": torch.ones(3)})
    made = plan("router", host=odd, unknown="host")
    assert made.accounts[-1][:2] == ("unknown", "host")
    assert made.nbytes == made.host.num_bytes
    given = plan("router", donor=odd, unknown="host")
    assert given.unused("d")["unknown"] == 1


def test_a_plan_of_another_family_is_refused(plan, tmp_path):
    tiny_model("mixtral").save_pretrained(tmp_path / "mixtral")
    with pytest.raises(IncompatibleError, match=r"family 'mixtral', the host .* of 'olmoe'"):
        plan("router", donor=tmp_path / "mixtral")
