"""Attribution to units: a planted one is found, and the parts add up to the whole."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from moegraft.evals.condition import Item, Pair
from moegraft.runtime import Host
from moegraft.sweep.attribution import (
    Question,
    difference_norms,
    integrated_gradients,
    nodes_of,
    num_steps,
    random_values,
    ranked,
    routing_frequencies,
    single_swaps,
    slopes_at,
)
from moegraft.sweep.units import units_of
from moegraft.transfer.scope import Slot
from tiny_models import FAMILIES, SIZES

PLANTED = Slot("experts", 1, 5)


def make_items(count=12) -> tuple[Item, ...]:
    source = torch.Generator().manual_seed(0)
    lines = torch.randint(2, 100, (count, 6), generator=source).tolist()
    pairs = [Pair(tuple(line[:5]), (line[5] % 7 + 2,)) for line in lines]
    return tuple(
        Item(str(i), {}, "", p.context, str(i), "", gold_pair=p) for i, p in enumerate(pairs)
    )


def learn(model, items, *, expert, steps=25):
    """Train one expert of layer 1 on the items."""
    ids = torch.tensor([item.gold_pair.context for item in items])
    targets = torch.tensor([item.gold_pair.continuation[0] for item in items])
    weights = [
        parameter
        for name, parameter in model.named_parameters()
        if name.startswith("model.layers.1.mlp.experts.")
    ]
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    before = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.Adam(weights, lr=0.02)
    rest = [e for e in range(8) if e != expert]
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[:, -1], targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight[rest] = old[rest]


@pytest.fixture(scope="module")
def items():
    return make_items()


@pytest.fixture(scope="module")
def planted(tmp_path_factory, make_olmoe, items) -> Host:
    """The donor is the host with one trained expert, and larger changes that nobody asks for.

    All experts serve all tokens, so that nothing jumps.
    """
    root = tmp_path_factory.mktemp("planted")
    host = make_olmoe(root / "host", seed=3, num_experts_per_tok=8)
    model = AutoModelForCausalLM.from_pretrained(host)
    learn(model, items, expert=PLANTED.expert)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                noise = 0.01 * torch.randn_like(parameter)
                noise[PLANTED.expert] = 0
                parameter.add_(noise)
        model.get_input_embeddings().weight[110:].add_(3.0)  # tokens that never occur
        model.model.layers[0].mlp.experts.down_proj[2].zero_()
        # Large and without effect: what this expert computes is dropped.
        model.model.layers[0].mlp.experts.gate_up_proj[2].mul_(9.0)
    model.save_pretrained(root / "donor")
    return Host.load(str(host), {"donor": str(root / "donor")}, device="cpu")


def test_the_planted_expert_comes_first(planted, items):
    question = Question(planted, items)
    units = units_of(planted.checkpoint, "experts")
    values = question.sum_by(integrated_gradients(question), units)
    swaps = single_swaps(question, units)
    assert ranked(values)[0] == ranked(swaps)[0] == PLANTED
    assert values[PLANTED] == pytest.approx(swaps[PLANTED], rel=0.3)
    assert ranked(question.sum_by(slopes_at(question, 0.0), units))[0] == PLANTED


def test_the_largest_difference_is_not_the_most_important(planted, items):
    question = Question(planted, items)
    norms = difference_norms(question, units_of(planted.checkpoint, "experts"))
    assert ranked(norms)[0] == Slot("experts", 0, 2)


def test_attributions_are_complete_where_the_routing_is_dense(planted, items):
    question = Question(planted, items)
    before = question.logprobs().mean()
    with question.taking_all():
        gain = question.logprobs().mean() - before
    assert gain > 1
    errors = {}
    for rule in ("gauss", "midpoint"):
        for points in (2, 8):
            found = integrated_gradients(question, num_points=points, rule=rule)
            errors[rule, points] = abs(sum(found.values()) - gain) / gain
    assert errors["gauss", 8] < 5e-3  # what eight points leave of a curve
    assert errors["midpoint", 8] < 2e-2
    assert errors["gauss", 8] < errors["gauss", 2]


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3", "granitemoe", "jamba"])
def test_other_families_are_attributed_too(tmp_path, items, family):
    torch.manual_seed(0)
    sizes = SIZES | FAMILIES[family] | {"num_experts_per_tok": 4}  # all experts: nothing jumps
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    for name in ("host", "donor"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / name)
    host = Host.load(str(tmp_path / "host"), {"donor": str(tmp_path / "donor")}, device="cpu")
    question = Question(host, items)
    found = integrated_gradients(question, num_points=8)
    before = question.logprobs().mean()
    with question.taking_all():
        change = question.logprobs().mean() - before
    assert sum(found.values()) == pytest.approx(change, abs=0.02 * abs(change) + 1e-3)
    by_expert = question.sum_by(found, units_of(host.checkpoint, "experts"))
    assert all(by_expert.values())


def test_both_grains_come_from_the_same_gradients(planted, items):
    question = Question(planted, items)
    finest = slopes_at(question, 0.5)
    by_component = question.sum_by(finest, units_of(planted.checkpoint, "components"))
    by_expert = question.sum_by(finest, units_of(planted.checkpoint, "experts"))
    for layer in range(2):
        of_layer = sum(v for unit, v in by_expert.items() if unit.layer == layer)
        assert by_component[Slot("experts", layer, None)] == pytest.approx(of_layer)


def test_a_path_of_some_components_leaves_the_others_alone(planted, items):
    question = Question(planted, items, components=("experts",))
    assert {slot.component for slot in slopes_at(question, 0.5)} == {"experts"}


def test_attributions_do_not_depend_on_batches(planted, items):
    steps = []
    whole = slopes_at(Question(planted, items), 0.3)
    small = Question(planted, items, max_tokens=12)
    cut = slopes_at(small, 0.3, on_step=lambda: steps.append(1))
    assert len(steps) == num_steps(small, 1) == 6
    for slot, value in whole.items():
        assert cut[slot] == pytest.approx(value, abs=1e-5)


def test_the_host_answers_the_same_after_everything(planted, items):
    question = Question(planted, items)
    before = question.logprobs()
    objects = [id(p) for p in planted.model.parameters()]
    units = units_of(planted.checkpoint, "components")
    single_swaps(question, units[:3])
    with pytest.raises(ZeroDivisionError):
        integrated_gradients(question, on_step=lambda: 1 / 0)
    assert (question.logprobs() == before).all()
    assert objects == [id(p) for p in planted.model.parameters()]
    assert not any(p.requires_grad for p in planted.model.parameters())


def test_units_together_are_the_units_of_a_transfer(planted, items):
    question = Question(planted, items)
    everything = units_of(planted.checkpoint, "components")
    with question.taking(everything):
        units = question.logprobs()
    with question.taking_all():
        donor = question.logprobs()
    # The norm after the last layer is the same in both, and all else has moved.
    assert (units == donor).all()


def test_frequencies_of_a_layer_sum_to_top_k(olmoe_pair, items):
    host = Host.load(*(str(olmoe_pair[0]), {"donor": str(olmoe_pair[1])}), device="cpu")
    found = routing_frequencies(Question(host, items, max_tokens=17))
    assert set(found) == set(units_of(host.checkpoint, "experts"))
    for layer in range(2):
        assert sum(v for slot, v in found.items() if slot.layer == layer) == pytest.approx(2)


def test_nodes_cover_the_path_evenly():
    for rule in ("gauss", "midpoint"):
        for count in (1, 4, 7):
            places, weights = zip(*nodes_of(rule, count), strict=True)
            assert sum(weights) == pytest.approx(1)
            assert sum(p * w for p, w in zip(places, weights, strict=True)) == pytest.approx(0.5)
            assert 0 < min(places) <= max(places) < 1
    assert nodes_of("midpoint", 2) == ((0.25, 0.5), (0.75, 0.5))


def test_random_values_follow_the_seed():
    units = [Slot("experts", 0, e) for e in range(8)]
    assert random_values(units, 1) == random_values(units, 1) != random_values(units, 2)
