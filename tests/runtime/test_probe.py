import math

import numpy as np
import pytest
import torch

from moegraft.errors import IncompatibleError
from moegraft.families import FAMILIES, find_family
from moegraft.runtime.batches import batches
from moegraft.runtime.hooks import distribution, observed, observed_hidden, routers
from moegraft.runtime.probe import RoutingCounts, RoutingProfile, profile_texts
from tiny_families import TINY, build_tiny, tiny_model

MOE = [name for name in TINY if find_family({"model_type": name}).is_moe]
TEXTS = [[5, 9, 3, 44, 17, 60, 2], [7, 11], [30, 31, 32, 33], [4]]


def family_of(name):
    return find_family({"model_type": name})


def one_by_one(model, name, texts):
    """transformers' own router logits of each text read alone, by layer.

    Before 5.21 some families do not give them: then what the router reads times its weight.
    """
    by_layer: dict[int, list[torch.Tensor]] = {}
    layers = routers(model, family_of(name))
    with torch.no_grad():
        for text in texts:
            read: list[torch.Tensor] = []

            def remember(_module, args, read=read):
                read.append(args[0])

            hooks = [module.register_forward_pre_hook(remember) for module in layers.values()]
            out = model.get_decoder()(
                torch.tensor([text]), output_router_logits=True, use_cache=False
            )
            for hook in hooks:
                hook.remove()
            given = getattr(out, "router_logits", None) or [
                torch.nn.functional.linear(hidden, module.weight)
                for hidden, module in zip(read, layers.values(), strict=True)
            ]
            for layer, logits in zip(layers, given, strict=True):
                by_layer.setdefault(layer, []).append(logits.reshape(-1, logits.shape[-1]))
    return {layer: torch.cat(parts) for layer, parts in by_layer.items()}


@pytest.mark.parametrize("name", MOE)
def test_counts_equal_those_from_transformers_router_logits(name):
    model = tiny_model(name)
    profile = profile_texts(model, family_of(name), {"words": TEXTS}, batch_tokens=14)
    logits = one_by_one(model, name, TEXTS)
    assert profile.layers == tuple(logits)
    num_tokens = sum(map(len, TEXTS))
    assert profile.num_tokens.tolist() == [num_tokens]
    assert (profile.counts.sum(-1) == profile.top_k * num_tokens).all()
    for place, (layer, found) in enumerate(logits.items()):
        module = routers(model, family_of(name))[layer]
        scores = found
        by_sigmoid = hasattr(module, "e_score_correction_bias")
        if by_sigmoid:
            scores = found.sigmoid() + module.e_score_correction_bias
        chosen = scores.topk(profile.top_k, -1).indices
        expected = torch.bincount(chosen.flatten(), minlength=found.shape[1])
        assert profile.counts[0, place].tolist() == expected.tolist()
        entropy = torch.special.entr(distribution(found, by_sigmoid=by_sigmoid).double()).sum()
        assert profile.entropy[0, place] == pytest.approx(float(entropy), rel=1e-5)


@pytest.mark.parametrize("name", ["olmoe", "deepseek_v3", "granitemoe", "jamba"])
def test_routing_mass_is_the_sum_of_the_weights_that_experts_are_called_with(name):
    model, family = build_tiny(name), family_of(name)
    experts = model.get_submodule(
        family.experts_module.format(layer=max(routers(model, family)))  # type: ignore[union-attr]
    )
    called: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = experts.register_forward_hook(lambda _m, args, _out: called.append(args[1:3]))
    profile = profile_texts(model, family, {"words": [TEXTS[0]]})
    hook.remove()
    ((indices, weights),) = called
    expected = torch.zeros(profile.num_experts, dtype=torch.float64)
    expected.scatter_add_(0, indices.flatten(), weights.flatten().double())
    np.testing.assert_allclose(profile.mass[0, -1], expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", ["olmoe", "gpt_oss", "qwen3_5_moe_text"])
def test_counts_do_not_depend_on_batches_and_padding(name):
    model, family = tiny_model(name), family_of(name)
    alone = profile_texts(model, family, {"words": TEXTS}, batch_tokens=1)
    together = profile_texts(model, family, {"words": TEXTS}, batch_tokens=1000)
    assert (alone.counts == together.counts).all()
    np.testing.assert_allclose(alone.mass, together.mass, rtol=1e-5)


def test_tokens_before_the_first_one_that_counts_are_left_out():
    model, family = tiny_model("olmoe"), FAMILIES["olmoe"]
    prefix = [8, 9, 10]
    whole = {"a": [prefix + text for text in TEXTS]}
    profile = profile_texts(model, family, whole, firsts={"a": [0, 3, 3, 3]})
    assert profile.num_tokens.tolist() == [3 + sum(map(len, TEXTS))]
    everything = profile_texts(model, family, whole)
    only_prefix = profile_texts(model, family, {"a": [prefix]})
    assert (everything.counts - profile.counts == 3 * only_prefix.counts).all()


def test_domains_are_counted_apart_and_weigh_the_same():
    model, family = tiny_model("mixtral"), FAMILIES["mixtral"]
    both = profile_texts(model, family, {"a": TEXTS[:1], "b": TEXTS[1:]})
    assert both.domains == ("a", "b")
    assert both.num_tokens.tolist() == [7, 7]
    for place, texts in enumerate((TEXTS[:1], TEXTS[1:])):
        apart = profile_texts(model, family, {"x": texts})
        assert (both.counts[place] == apart.counts[0]).all()
    longer = profile_texts(model, family, {"a": TEXTS[:1] * 5, "b": TEXTS[1:]})
    np.testing.assert_allclose(longer.mean_frequency, both.mean_frequency)
    np.testing.assert_allclose(both.frequency.sum(-1), both.top_k)


def test_derived_numbers_by_hand():
    counts = np.array([[[4, 4, 0, 0]], [[0, 0, 8, 0]]])
    profile = RoutingProfile(
        domains=("a", "b"),
        layers=(3,),
        top_k=1,
        num_tokens=np.array([8, 8]),
        counts=counts,
        mass=counts / 2,
        entropy=np.full((2, 1), 8 * math.log(2)),
    )
    assert profile.load_entropy[:, 0].tolist() == pytest.approx([0.5, 0.0])
    assert profile.token_entropy[:, 0].tolist() == pytest.approx([0.5, 0.5])
    assert profile.dead == ((3, 3),)
    assert profile.specialisation.tolist() == pytest.approx([1.0])  # expert names the domain
    assert profile.routing_mass[0, 0].tolist() == [0.25, 0.25, 0, 0]
    assert profile.as_dict()["dead"] == [[3, 3]]


def test_every_decision_is_handed_out_in_the_order_of_tokens_and_layers():
    model, family = tiny_model("olmoe"), FAMILIES["olmoe"]
    (batch,) = batches(TEXTS, 1000, torch.device("cpu"))
    seen = []
    with torch.no_grad(), observed(model, family, seen.append, batch.mask):
        model(batch.ids, attention_mask=batch.mask.long())
    assert [routing.layer for routing in seen] == [0, 1]
    expected = one_by_one(model, "olmoe", [TEXTS[row] for row in batch.rows])
    for routing in seen:
        torch.testing.assert_close(routing.logits, expected[routing.layer])
        again = model.get_submodule(f"model.layers.{routing.layer}.mlp.gate")(routing.hidden)
        assert torch.equal(again[2], routing.experts)
        torch.testing.assert_close(routing.probabilities().sum(-1), torch.ones(14))


@pytest.mark.parametrize("name", [*MOE, "llama"])
def test_hidden_states_are_those_of_transformers(name):
    model = tiny_model(name)
    seen: dict[int, torch.Tensor] = {}
    ids = torch.tensor([TEXTS[0]])
    with torch.no_grad(), observed_hidden(model, family_of(name), seen.__setitem__):
        expected = model.get_decoder()(ids, output_hidden_states=True).hidden_states
    assert list(seen) == list(range(len(expected) - 1))
    for layer, hidden in list(seen.items())[:-1]:  # the last one is normalised there
        assert torch.equal(hidden, expected[layer + 1][0])


def test_hooks_are_gone_after_an_exception():
    model, family = build_tiny("olmoe"), FAMILIES["olmoe"]
    counts = RoutingCounts()
    with (
        pytest.raises(IndexError),
        observed(model, family, counts.observer("a")),
        observed_hidden(model, family, lambda layer, hidden: None),
    ):
        model(torch.tensor([[99]]))
    assert not any(module._forward_hooks for module in model.modules())


def test_an_observer_that_fails_leaves_no_hooks():
    model, family = build_tiny("olmoe"), FAMILIES["olmoe"]

    def fail(routing):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), observed(model, family, fail):
        model(torch.tensor([[9]]))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_dense_model_has_no_routers():
    with pytest.raises(IncompatibleError, match="LlamaForCausalLM has no routers"):
        routers(tiny_model("llama"), family_of("llama"))


def test_batches_hold_every_token_once_and_mark_padding():
    found = list(batches(TEXTS, 8, torch.device("cpu"), [1, 0, 0, 0]))
    assert [batch.rows for batch in found] == [[0], [2, 1], [3]]
    assert sum(int(batch.mask.sum()) for batch in found) == 14
    assert sum(int(batch.counted.sum()) for batch in found) == 13
    for batch in found:
        for row, ids, mask in zip(batch.rows, batch.ids, batch.mask, strict=True):
            assert ids[mask].tolist() == TEXTS[row]
            assert not mask[len(TEXTS[row]) :].any()
