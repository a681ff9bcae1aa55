import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from moegraft.errors import IncompatibleError, RecipeError
from moegraft.nano import pretrain
from moegraft.nano import tokenizer as tokenizers
from moegraft.train.router_loss import RouterLoss, load_balance, router_losses, router_z

IDS = torch.arange(24).reshape(2, 12) + 3


@pytest.fixture(scope="module")
def model():
    tokenizer = tokenizers.train(["red and blue"] * 4, vocab_size=300)
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2}
    return pretrain.new_model(tokenizer, 0, **sizes)


def test_balance_is_one_when_balanced_and_the_number_of_experts_when_collapsed():
    even = torch.full((8, 4), 0.25)
    assert load_balance(even, torch.arange(16).reshape(8, 2) % 4).item() == 1.0
    alone = torch.tensor([[1.0, 0, 0, 0]]).expand(8, 4)
    assert load_balance(alone, torch.zeros(8, 1, dtype=torch.long)).item() == 4.0


def test_z_is_the_squared_log_sum_exp():
    logits = torch.tensor([[0.0, 0.0], [3.0, 3.0]])
    log2 = torch.tensor(2.0).log()
    expected = (log2**2 + (3 + log2) ** 2) / 2
    torch.testing.assert_close(router_z(logits), expected)


def test_the_routers_losses_are_those_of_the_logits_that_transformers_reports(model):
    with router_losses(model, RouterLoss(balance=0.5, z=0.25)) as take:
        output = model(input_ids=IDS, output_router_logits=True)
        found = take(None)
    expected = []
    for logits in output.router_logits:
        top = logits.softmax(-1).topk(2).indices
        expected.append(0.5 * load_balance(logits.softmax(-1), top) + 0.25 * router_z(logits))
    torch.testing.assert_close(found, torch.stack(expected).mean())
    found.backward()
    assert model.model.layers[0].mlp.gate.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_padding_has_no_part_in_them(model):
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 6:] = False
    other = IDS.clone()
    other[1, 6:] = 5
    with router_losses(model, RouterLoss(z=1.0)) as take:
        model(input_ids=IDS)
        one = take(mask)
        model(input_ids=other)
        assert torch.equal(take(mask), one)
        with torch.no_grad():
            model(input_ids=IDS)  # a validation in between is not seen
        with pytest.raises(AssertionError, match="forward pass"):
            take(None)


def test_dense_models_and_negative_coefficients_are_refused():
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
    )
    with (
        pytest.raises(IncompatibleError, match="has no routers"),
        router_losses(LlamaForCausalLM(config), RouterLoss(z=1.0)),
    ):
        pass
    with pytest.raises(RecipeError, match="z: expected 0 or more"):
        RouterLoss(z=-1.0)
