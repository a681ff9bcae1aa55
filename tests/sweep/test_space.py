import pytest

from moegraft.checkpoint import open_checkpoint
from moegraft.runtime.trunk import layer_of
from moegraft.sweep.space import Space, prefixes
from moegraft.sweep.units import recipe_of
from moegraft.transfer.plan import plan_transfer
from moegraft.transfer.scope import Slot


@pytest.fixture(scope="module")
def pair(tmp_path_factory, make_olmoe):
    root = tmp_path_factory.mktemp("deep")
    paths = [make_olmoe(root / str(k), seed=k, num_hidden_layers=5) for k in (0, 1)]
    return [open_checkpoint(str(path)) for path in paths]


@pytest.fixture(scope="module")
def space(pair):
    return Space.of(pair[0], 2)


def test_units_are_components_in_groups_of_layers_and_what_stands_outside(space):
    assert [str(unit) for unit in space.units] == [
        *("embedding", "attention 0-2", "attention 3-4", "router 0-2", "router 3-4"),
        *("experts 0-2", "experts 3-4", "rest 0-2", "rest 3-4"),
    ]
    assert space.first_layer(frozenset(), space.having(component="embedding")) == 0


def test_what_does_not_differ_is_no_unit(pair):
    differing = {Slot("experts", 3, None), Slot("embedding", None, None)}
    found = Space.of(pair[0], 2, differing=differing)
    assert [str(unit) for unit in found.units] == ["embedding", "experts 3"]


def test_everything_is_all_that_a_transfer_can_move_but_the_last_norm(pair, space):
    host, donor = pair
    recipe = recipe_of(host.source, donor.source, space.slots(space.everything))
    plan = plan_transfer(recipe, host, {"donor": donor})
    left = {slot for slot in map(tuple, (k[:3] for k in host.pieces())) if slot not in plan.moves}
    assert left == {("norm", None, None)}


def test_the_eight_of_the_paper_are_presets(space):
    presets = [space.describe(one) for one in space.presets()]
    assert presets[0] == "host"
    assert len(presets) == 8
    assert "attention 0-4, router 0-4, experts 0-4" in presets
    assert "router 0-4" in presets


def test_the_first_layer_is_where_two_compositions_part(space):
    low, high = (
        space.having(component="experts", layer=0),
        space.having(component="router", layer=4),
    )
    assert space.first_layer(low, low) == 5
    assert space.first_layer(low, low | high) == 3
    assert space.first_layer(frozenset(), low | high) == 0
    assert layer_of("norm", None, 5) == 5


def test_neighbours_flip_a_unit_a_component_or_a_group(space):
    here = space.having(component="router")
    moves = space.neighbours(here)
    assert len(moves) == len(set(moves))
    assert here not in moves
    assert sum(len(move ^ here) == 1 for move in moves) == len(space.units)
    assert space.having(component="router") | space.having(component="experts") in moves
    assert frozenset() in moves
    assert here | space.having(layer=4) in moves


def test_prefixes_grow_by_falling_value():
    assert prefixes([0.1, 3.0, -1.0, 2.0], 3) == [{1}, {1, 3}, {0, 1, 2, 3}]
    assert prefixes([0.1, 3.0, -1.0, 2.0], 9)[2] == {0, 1, 3}


def test_values_of_slots_are_summed_by_unit(space):
    values = space.values({slot: 1.0 for unit in space.units for slot in unit.slots})
    assert values == [float(len(unit.slots)) for unit in space.units]
