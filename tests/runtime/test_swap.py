"""Hot swap of parameters, buffers, tied tensors and single experts."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from moegraft.errors import IncompatibleError, RecipeError
from moegraft.runtime import Patch, swapped

EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
ROUTER = "model.layers.1.mlp.gate.weight"


@pytest.fixture
def model(host):
    return host.model


def test_a_whole_tensor_is_used_not_copied(model):
    old = model.get_parameter(ROUTER)
    new = torch.randn_like(old)
    with swapped(model, [Patch(ROUTER, new)]) as same:
        assert same is model
        assert model.get_parameter(ROUTER).data_ptr() == new.data_ptr()
    assert model.get_parameter(ROUTER) is old


def test_a_donor_parameter_is_registered_itself(host):
    new = host.donor_parameter("donor", ROUTER)
    with swapped(host.model, [Patch(ROUTER, new)]):
        assert host.model.get_parameter(ROUTER) is new


def test_single_experts_are_written_into_a_clone(model):
    old = model.get_parameter(EXPERTS)
    before = old.clone()
    first, last = torch.randn_like(old[0]), torch.randn_like(old[7])
    with swapped(model, [Patch(EXPERTS, last, expert=7), Patch(EXPERTS, first, expert=0)]):
        now = model.get_parameter(EXPERTS)
        assert now.data_ptr() != old.data_ptr()
        assert torch.equal(now[0], first)
        assert torch.equal(now[7], last)
        assert torch.equal(now[1:7], before[1:7])
        assert torch.equal(old, before)
    assert model.get_parameter(EXPERTS) is old


def test_a_function_as_value_is_called_once_when_the_swap_happens(model):
    calls = []

    def make():
        calls.append(1)
        return torch.zeros_like(model.get_parameter(ROUTER))

    patch = Patch(ROUTER, make)
    assert calls == []
    with swapped(model, [patch]):
        assert calls == [1]
        assert not model.get_parameter(ROUTER).any()


def test_a_persistent_buffer_is_swapped_too():
    model = nn.BatchNorm1d(4)
    old = model.running_mean
    with swapped(model, [Patch("running_mean", torch.ones(4))]):
        assert torch.equal(model.state_dict()["running_mean"], torch.ones(4))
    assert model.running_mean is old


def test_requires_grad_is_the_replaced_parameters():
    model = nn.Linear(2, 2)
    frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    with swapped(model, [Patch("weight", frozen)]):
        assert model.weight.requires_grad
        assert model.weight.data_ptr() == frozen.data_ptr()
    assert not frozen.requires_grad


def tied_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight"])
def test_a_tied_tensor_changes_under_both_names(name):
    model = tied_model()
    old = model.lm_head.weight
    with swapped(model, [Patch(name, torch.ones_like(old))]):
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.equal(model.lm_head.weight, torch.ones_like(old))
    assert model.lm_head.weight is old
    assert model.model.embed_tokens.weight is old


def test_both_names_of_a_tied_tensor_may_get_one_value_but_not_two():
    model = tied_model()
    one = torch.ones_like(model.lm_head.weight)
    names = ("lm_head.weight", "model.embed_tokens.weight")
    with swapped(model, [Patch(name, one) for name in names]):
        assert torch.equal(model.lm_head.weight, one)
    with (
        pytest.raises(RecipeError, match=r"two patches .* \(tied: one tensor under two names\)"),
        swapped(model, [Patch(name, one.clone()) for name in names]),
    ):
        pass


def test_nesting_is_refused_and_leaves_the_outer_swap_alone(model):
    new = torch.zeros_like(model.get_parameter(ROUTER))
    with swapped(model, [Patch(ROUTER, new)]):
        for part in (model, model.model):
            with pytest.raises(RecipeError, match="swaps do not nest"), swapped(part, []):
                pass
        assert not model.get_parameter(ROUTER).any()
    with swapped(model, []):
        pass


@pytest.mark.parametrize(("first", "second"), [(3, 3), (None, None), (None, 3)])
def test_conflicting_patches_are_refused(model, first, second):
    old = model.get_parameter(EXPERTS)
    values = [torch.zeros_like(old if e is None else old[e]) for e in (first, second)]
    patches = [Patch(EXPERTS, v, e) for v, e in zip(values, (first, second), strict=True)]
    with pytest.raises(RecipeError, match="two patches for one place"), swapped(model, patches):
        pass


def test_an_unknown_name_is_answered_with_the_nearest(model):
    patch = Patch("model.layers.1.mlp.gates.weight", torch.zeros(1))
    expected = r"no parameter .*gates.*; the nearest is 'model\.layers\.1\.mlp\.gate\.weight'"
    with pytest.raises(IncompatibleError, match=expected), swapped(model, [patch]):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:-1], r"shape \[7, 32\], the model's has \[8, 32\]"),
        (lambda t: t.half(), "dtype torch.float16, the model's has torch.float32"),
        (lambda t: t.to("meta"), "device meta, the model's has cpu"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(model, change, message):
    old = model.get_parameter(ROUTER)
    patch = Patch(ROUTER, change(old.clone()))
    with pytest.raises(IncompatibleError, match=message), swapped(model, [patch]):
        pass
    assert model.get_parameter(ROUTER) is old


def test_experts_out_of_range_are_refused(model):
    value = torch.zeros_like(model.get_parameter(EXPERTS)[0])
    with (
        pytest.raises(IncompatibleError, match=r"no expert 8 in a tensor of shape \[8, 32, 32\]"),
        swapped(model, [Patch(EXPERTS, value, expert=8)]),
    ):
        pass
