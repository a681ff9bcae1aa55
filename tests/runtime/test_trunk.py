import pytest
import torch
from torch import nn

from moegraft.families import FAMILIES
from moegraft.runtime import Patch, swapped
from moegraft.runtime.trunk import (
    Trunk,
    TrunkMismatchError,
    first_changed_layer,
    plain_layers,
)
from tiny_families import TINY, build_tiny

LAYERS = 4
PLAIN = [name for name in TINY if name in FAMILIES and FAMILIES[name].branching_cache]


def deep(family: str):
    """A tiny model of at least four layers."""
    sizes = {"num_hidden_layers": LAYERS}
    if "layer_types" in TINY[family]:
        sizes["layer_types"] = [*TINY[family]["layer_types"]] * 2
    return build_tiny(family, **sizes)


def batches(count: int = 3):
    source = torch.Generator().manual_seed(0)
    return [torch.randint(3, 60, (2, 5 + k), generator=source) for k in range(count)]


@torch.no_grad()
def logits_of(model, ids):
    return [model(input_ids=one, use_cache=False).logits for one in ids]


def trunk_of(model, family: str, **options) -> Trunk:
    return Trunk(plain_layers(model, FAMILIES[family]), model.get_input_embeddings(), **options)


def replaced(model, layer: int):
    """Patches that change every matrix of one layer."""
    return [
        Patch(name, value * 1.25)
        for name, value in model.state_dict().items()
        if f"layers.{layer}." in name and value.is_floating_point()
    ]


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("family", PLAIN)
def test_passes_that_start_at_a_changed_layer_are_bit_identical_to_full_ones(family):
    model, ids = deep(family), batches()
    trunk = trunk_of(model, family)
    with trunk.recording():
        before = logits_of(model, ids)
    for layer in range(LAYERS):
        changes = replaced(model, layer)
        assert first_changed_layer(changes, FAMILIES[family], LAYERS) == layer
        with swapped(model, changes):
            full = logits_of(model, ids)
            with trunk.starting_at(layer) as start:
                assert start == layer
                again = logits_of(model, ids)
        assert equal(full, again)
        assert not equal(full, before)
    assert equal(logits_of(model, ids), before)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_lower_layers_are_not_run():
    model, ids = deep("olmoe"), batches(1)
    trunk = trunk_of(model, "olmoe")
    with trunk.recording():
        logits_of(model, ids)
    ran = []
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_hook(lambda *_, place=place: ran.append(place))
    with trunk.starting_at(2):
        logits_of(model, ids)
    assert ran == [2, 3]


def test_a_change_of_the_head_reuses_all_but_the_last_layer_and_one_of_the_embedding_nothing():
    model, ids, family = deep("olmoe"), batches(1), FAMILIES["olmoe"]
    head = [Patch("lm_head.weight", model.lm_head.weight * 2)]
    embedding = [Patch("model.embed_tokens.weight", model.model.embed_tokens.weight * 2)]
    assert first_changed_layer([], family, LAYERS) == LAYERS
    assert first_changed_layer(head, family, LAYERS) == LAYERS
    assert first_changed_layer([*head, *embedding], family, LAYERS) == 0
    norm = [Patch("model.norm.weight", model.model.norm.weight * 2)]
    assert first_changed_layer(norm, family, LAYERS) == LAYERS
    trunk = trunk_of(model, "olmoe")
    with trunk.recording():
        logits_of(model, ids)
    with swapped(model, head):
        full = logits_of(model, ids)
        with trunk.starting_at(LAYERS) as start:
            assert start == LAYERS - 1
            assert equal(logits_of(model, ids), full)
    with trunk.starting_at(0) as start:
        assert start == 0


def test_too_little_memory_keeps_fewer_layers_the_middle_last():
    model, ids = build_tiny("olmoe", num_hidden_layers=8), batches()
    full = logits_of(model, ids)
    every = trunk_of(model, "olmoe")
    with every.recording():
        logits_of(model, ids)
    assert every.starts == (1, 2, 3, 4, 5, 6, 7)
    for share, starts in ((7, (2, 4, 6)), (3, (4,)), (0.5, ())):
        trunk = trunk_of(model, "olmoe", max_bytes=int(every.nbytes * share / 7) - 1)
        with trunk.recording():
            logits_of(model, ids)
        assert trunk.starts == starts
        with trunk.starting_at(6) as start:
            assert start == max(starts, default=0)
            assert equal(logits_of(model, ids), full)


def test_other_passes_than_the_recorded_ones_are_refused_and_layers_put_back():
    model, ids = deep("olmoe"), batches()
    trunk = trunk_of(model, "olmoe")
    with trunk.recording():
        logits_of(model, ids)
    for wrong in ([ids[1]], [*ids, ids[0]], [ids[0] + 1]):
        with pytest.raises(TrunkMismatchError), trunk.starting_at(2):
            logits_of(model, wrong)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_models_that_are_no_plain_stack_have_no_layers_to_skip():
    class Elsewhere(nn.Module):
        config = build_tiny("olmoe").config

    assert plain_layers(Elsewhere(), FAMILIES["olmoe"]) == []
    assert plain_layers(build_tiny("jamba"), FAMILIES["jamba"]) == []


def test_layers_that_return_more_than_hidden_states_cannot_be_recorded():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    embedding = nn.Embedding(4, 2)
    layer = Two()
    with pytest.raises(TrunkMismatchError), Trunk([layer, layer], embedding).recording():
        layer(embedding(torch.tensor([[1]])))
