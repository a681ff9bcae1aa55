import logging

import pytest
import torch

from moegraft.evals import load_condition
from moegraft.evals.gold import gold_pairs
from moegraft.evals.judge import score_items
from moegraft.evals.likelihood import likelihoods
from moegraft.evals.rescore import Rescorer
from moegraft.evals.scorer import Scorer
from moegraft.evals.slots import Forward
from moegraft.runtime import Host, Patch
from tiny_families import build_tiny


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """Four layers, and a byte tokenizer."""
    return save_and_load(tmp_path_factory.mktemp("four"), "olmoe", num_hidden_layers=4)


def save_and_load(path, family, **sizes):
    from tiny_sweep import byte_tokenizer

    sizes = {"vocab_size": 258, "max_position_embeddings": 512} | sizes
    build_tiny(family, **sizes).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return Host.load(str(path), {}, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def conditions(host, tiny_tasks):
    return {
        name: load_condition(name, tokenizer=host.tokenizer, include=(tiny_tasks,), limit=12)
        for name in ("tiny_write", "tiny_choose")
    }


def changed(host, layer):
    """Patches that change all matrices of one layer."""
    return [
        Patch(name, host.parameter(name) * 1.5)
        for name in host.parameter_names()
        if f"layers.{layer}." in name
    ]


def requests(condition):
    return gold_pairs(condition.items) + [p for item in condition.items for p in item.pairs]


def full(host, pairs, max_tokens=4096):
    return dict(likelihoods(Forward(host.model), pairs, max_tokens))


@pytest.mark.parametrize("max_tokens", [64, 4096])
@pytest.mark.parametrize("name", ["tiny_write", "tiny_choose"])
def test_rescored_requests_equal_full_passes_bit_by_bit(host, conditions, name, max_tokens):
    pairs = requests(conditions[name])
    rescorer = Rescorer(host, max_tokens=max_tokens)
    with rescorer.recording():
        assert dict(rescorer.likelihoods(pairs)) == full(host, pairs, max_tokens)
    for layer in range(rescorer.num_layers):
        with host.with_patches(changed(host, layer)), rescorer.starting_at(layer):
            ran = count_layers(host)
            again = dict(rescorer.likelihoods(pairs))
            assert set(ran()) == set(range(layer, 4))
            assert again == full(host, pairs, max_tokens)
    assert rescorer.reuses


def count_layers(host):
    """Which layers ran since: a function that says so and stops counting."""
    ran = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda *_, place=place: ran.append(place))
        for place, layer in enumerate(host.model.model.layers)
    ]

    def stop():
        for hook in hooks:
            hook.remove()
        return ran

    return stop


def test_a_shared_prefix_is_reused_too(host):
    from moegraft.evals.tokens import encode_pairs
    from tiny_models import choice_requests

    pairs = encode_pairs(host.tokenizer, choice_requests(24))
    rescorer = Rescorer(host)
    with rescorer.recording():
        list(rescorer.likelihoods(pairs))
    with host.with_patches(changed(host, 2)), rescorer.starting_at(2):
        assert dict(rescorer.likelihoods(pairs)) == full(host, pairs)


def test_items_are_scored_and_generated_as_by_a_scorer(host, conditions):
    for condition in conditions.values():
        rescorer = Rescorer(host)
        with rescorer.recording():
            list(score_items(rescorer, condition, condition.items))
        with host.with_patches(changed(host, 3)):
            with rescorer.starting_at(3):
                found = list(score_items(rescorer, condition, condition.items))
            assert found == list(score_items(Scorer(host), condition, condition.items))


def test_a_composition_can_be_what_later_ones_start_from(host, conditions):
    pairs = requests(conditions["tiny_choose"])
    rescorer = Rescorer(host)
    low, high = changed(host, 0), changed(host, 2)
    with host.with_patches(low), rescorer.recording():
        list(rescorer.likelihoods(pairs))
    with host.with_patches([*low, *high]):
        with rescorer.starting_at(2):
            found = dict(rescorer.likelihoods(pairs))
        assert found == full(host, pairs)


def test_requests_that_were_not_recorded_are_computed_in_full(host, conditions):
    pairs = requests(conditions["tiny_write"])
    rescorer = Rescorer(host)
    with rescorer.recording():
        list(rescorer.likelihoods(pairs[:3]))
    with rescorer.starting_at(2):
        assert dict(rescorer.likelihoods(pairs)) == full(host, pairs)


def test_without_memory_for_hidden_states_everything_is_computed(host, conditions, caplog):
    pairs = requests(conditions["tiny_write"])
    rescorer = Rescorer(host, max_bytes=1)
    with caplog.at_level(logging.INFO, "moegraft"), rescorer.recording():
        list(rescorer.likelihoods(pairs))
    assert "memory for hidden states is too small" in caplog.text
    with host.with_patches(changed(host, 2)), rescorer.starting_at(2):
        assert dict(rescorer.likelihoods(pairs)) == full(host, pairs)


def test_a_family_with_a_recurrent_state_is_computed_in_full_and_says_so_once(tmp_path, caplog):
    jamba = save_and_load(tmp_path, "jamba")
    pairs = [*_pairs(3)]
    with caplog.at_level(logging.INFO, "moegraft.evals.rescore"):
        rescorer = Rescorer(jamba)
        with rescorer.recording():
            before = dict(rescorer.likelihoods(pairs))
        with rescorer.starting_at(2):
            assert dict(rescorer.likelihoods(pairs)) == before
    said = [one.message for one in caplog.records if one.name.startswith("moegraft")]
    assert said == [
        "computing every layer for every configuration: jamba is no plain stack of layers"
    ]
    assert not rescorer.reuses


def test_layers_that_look_past_their_input_are_noticed(host, conditions, caplog):
    pairs = requests(conditions["tiny_write"])
    held = {}
    low, high = host.model.model.layers[0], host.model.model.layers[3]
    hooks = [
        low.register_forward_hook(lambda *parts: held.update(low=parts[2])),
        high.register_forward_hook(lambda *parts: parts[2] + held.pop("low", 0.0)),
    ]
    rescorer = Rescorer(host)
    with caplog.at_level(logging.INFO, "moegraft"), rescorer.recording():
        list(rescorer.likelihoods(pairs))
    for hook in hooks:
        hook.remove()
    assert "depend on more than the hidden states" in caplog.text
    assert not rescorer.reuses


def test_other_batches_than_the_recorded_ones_are_computed_in_full(host, caplog):
    pairs = [*_pairs(40)]
    rescorer = Rescorer(host, max_tokens=4096)
    with rescorer.recording():
        list(rescorer.likelihoods(pairs))
    rescorer.max_tokens = 64  # as after running out of memory
    with caplog.at_level(logging.INFO, "moegraft"), rescorer.starting_at(2):
        assert dict(rescorer.likelihoods(pairs)) == full(host, pairs, 64)
    assert "not the one that was recorded" in caplog.text


def _pairs(count):
    from moegraft.evals.condition import Pair

    source = torch.Generator().manual_seed(0)
    for _ in range(count):
        ids = torch.randint(3, 200, (8,), generator=source).tolist()
        yield Pair(tuple(ids[:5]), tuple(ids[5:]))
