import pytest
import torch
from torch.nn.functional import silu

from moegraft.errors import IncompatibleError, RecipeError
from moegraft.xpert.decompose import Decomposition
from moegraft.xpert.ranks import FULL
from moegraft.xpert.resize import Ffns, Resizing, map_layers
from small_knowledge import take


@pytest.fixture(scope="module")
def known(olmoe_pair, tmp_path_factory):
    """Knowledge by name: of hidden 32, 16 neurons, 2 layers."""
    root = tmp_path_factory.mktemp("known")
    kinds = {
        "tucker": Decomposition(),
        "mean": Decomposition("mean"),
        "full": Decomposition(ranks=FULL),
        "groups": Decomposition("mean", num_groups=4),
        "concat": Decomposition("concat"),
    }
    return {name: take(olmoe_pair[0], root / name, how) for name, how in kinds.items()}


def ffn(matrices, x):
    hidden = silu(x @ matrices["gate"].T) * (x @ matrices["up"].T)
    return hidden @ matrices["down"].T


def whole(knowledge, layer=0, group=0):
    return {name: one.matrix() for name, one in knowledge.layer(layer, group).items()}


def test_layers_are_mapped_from_the_front_evenly_or_in_turn():
    assert map_layers("first", 4, 3) == [0, 1, 2]
    assert map_layers("uniform", 16, 4) == [2, 6, 10, 14]
    assert map_layers("uniform", 2, 4) == [0, 0, 1, 1]
    assert map_layers("repeat", 2, 5) == [0, 1, 0, 1, 0]
    with pytest.raises(RecipeError, match="first: the target has 5 layers and the knowledge 2"):
        map_layers("first", 2, 5)


@pytest.mark.parametrize("name", ["tucker", "mean"])
def test_the_same_size_is_the_knowledge_itself(known, name):
    made = Ffns(known[name], Resizing(), 32, 2)
    for layer in (0, 1):
        for matrix, expected in whole(known[name], layer).items():
            assert torch.equal(made.matrices(layer, 0, 16)[matrix], expected)


@pytest.mark.parametrize("width", [17, 32, 45])
def test_doubled_neurons_preserve_the_function(known, width):
    grown = Ffns(known["tucker"], Resizing(), 32, 2).matrices(1, 0, width)
    x = torch.randn(5, 32)
    assert grown["gate"].shape == (width, 32)
    assert torch.allclose(ffn(grown, x), ffn(whole(known["tucker"], 1), x), atol=1e-6)


def test_doubled_residual_dimensions_preserve_the_function(known):
    wide = Ffns(known["tucker"], Resizing(), 48, 2)
    index = wide.residual
    assert len(index) == 48 and set(index.tolist()) == set(range(32))
    x = torch.randn(5, 32)
    found = ffn(wide.matrices(0, 0, 20), x[:, index])
    assert torch.allclose(found, ffn(whole(known["tucker"]), x)[:, index], atol=1e-6)


def test_narrower_matrices_share_neurons_and_all_layers_share_dimensions(known):
    small = Ffns(known["full"], Resizing(), 20, 2)
    for layer in (0, 1):
        rows, columns = small.neurons(layer, 0, 12), small.residual
        found, old = small.matrices(layer, 0, 12), whole(known["full"], layer)
        assert torch.allclose(found["gate"], old["gate"][rows][:, columns], atol=1e-6)
        assert torch.allclose(found["up"], old["up"][rows][:, columns], atol=1e-6)
        assert torch.allclose(found["down"], old["down"][columns][:, rows], atol=1e-6)


def test_matrices_that_select_apart_tear_neurons_apart(known):
    together = Ffns(known["tucker"], Resizing(), 20, 2)
    apart = Ffns(known["tucker"], Resizing(couple=False), 20, 2)
    assert apart.matrices(0, 0, 12)["gate"].shape == (12, 20)
    assert not torch.equal(apart.matrices(0, 0, 12)["gate"], together.matrices(0, 0, 12)["gate"])
    doubled = apart.matrices(0, 0, 24)["down"].abs().sum()
    assert doubled > together.matrices(0, 0, 24)["down"].abs().sum()  # copies are not divided


def test_evenly_spaced_selection_is_one_too(known):
    even = Ffns(known["mean"], Resizing(select="even"), 16, 2)
    assert torch.equal(even.matrices(0, 0, 8)["gate"], whole(known["mean"])["gate"][1::2][:, 1::2])


def test_groups_side_by_side_compute_the_mean_of_their_outputs(known):
    x = torch.randn(5, 32)
    parts = torch.stack([ffn(whole(known["groups"], 0, group), x) for group in range(4)])
    for name, groups in (("groups", Resizing(grow="concat")), ("concat", Resizing())):
        made = Ffns(known[name], groups, 32, 2).matrices(0, 0, 64)
        expected = parts.mean(0)
        if name == "concat":
            expected = ffn(whole(known["concat"]), x) / 4
        assert torch.allclose(ffn(made, x), expected, atol=1e-6)
    added = Ffns(known["groups"], Resizing(grow="concat", outputs="sum"), 32, 2)
    assert torch.allclose(ffn(added.matrices(0, 0, 64), x), parts.sum(0), atol=1e-6)
    with pytest.raises(IncompatibleError, match="80 neurons needs 5 groups of 16, and the know"):
        added.matrices(0, 0, 80)
    with pytest.raises(RecipeError, match="has no --grow concat"):
        Ffns(known["groups"], Resizing(grow="concat", couple=False), 32, 2).matrices(0, 0, 64)


def test_experts_take_the_groups_in_turn(known):
    made = Ffns(known["groups"], Resizing(), 32, 2)
    for expert in range(6):
        expected = whole(known["groups"], 0, expert % 4)["up"]
        assert torch.equal(made.matrices(0, expert, 16)["up"], expected)
    pairs = Ffns(known["groups"], Resizing(grow="concat"), 32, 2).matrices(0, 1, 32)["gate"]
    own = [whole(known["groups"], 0, group)["gate"] for group in (2, 3)]
    assert torch.equal(pairs, torch.cat(own))


def test_scale_rules_are_what_they_say(known):
    plain = Ffns(known["tucker"], Resizing(), 20, 2).matrices(0, 0, 12)
    wider = Ffns(known["tucker"], Resizing(scale="fan_in"), 20, 2).matrices(0, 0, 12)
    assert torch.allclose(wider["gate"], plain["gate"] * (32 / 20) ** 0.5)
    assert torch.allclose(wider["down"], plain["down"] * (16 / 12) ** 0.5)
    matched = Ffns(known["tucker"], Resizing(scale="match_std"), 32, 2).matrices(0, 0, 16)
    ratio = known["tucker"].layer(0)["up"].diagnostics["norm_ratio"]
    assert torch.allclose(matched["up"] * ratio, whole(known["tucker"])["up"], atol=1e-7)
    side = Ffns(known["concat"], Resizing(scale="match_std"), 32, 2).matrices(0, 0, 64)
    assert torch.allclose(side["gate"], whole(known["concat"])["gate"], rtol=0.05)


@pytest.mark.parametrize("wrong", ["depth", "grow", "select", "scale", "outputs"])
def test_a_wrong_choice_is_one_clear_line(wrong):
    with pytest.raises(RecipeError, match=f"--{wrong} best: expected one of"):
        Resizing(**{wrong: "best"})
