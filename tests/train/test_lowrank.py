import pytest
import torch

from moegraft.errors import RecipeError
from moegraft.train.freeze import Trainable, freeze
from moegraft.train.lowrank import add_low_rank
from tiny_families import build_tiny

IDS = torch.arange(40).reshape(2, 20)


def _model(family="flex_olmo"):
    model = build_tiny(family, num_experts=2, num_experts_per_tok=2)
    model.set_experts_implementation("eager")
    return model.train()


def _rows(model):
    return {n: (1,) for n, _ in model.named_parameters() if ".experts." in n}


def _logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the name that older versions know
@pytest.mark.parametrize("checkpointing", [False, True])
def test_folding_gives_the_trained_model_back_in_the_old_layout(checkpointing, tmp_path):
    model = _model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = _logits(model)
    low_rank = add_low_rank(model, _rows(model), 3)
    assert torch.equal(_logits(model), start)
    frozen = freeze(model, Trainable(low_rank.names, {"*.mlp.gate.weight": (1,)}))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    frozen.guard(optimizer)
    for _ in range(3):
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    frozen.check()
    trained = _logits(model)
    assert not torch.allclose(trained, start, atol=1e-4)
    low_rank.fold()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert torch.equal(_logits(model), trained)
    for name, old in before.items():
        if ".experts." in name or ".gate." in name:
            assert torch.equal(old[0].view(torch.int32), after[name][0].view(torch.int32))
            assert not torch.equal(old[1], after[name][1])
        else:
            assert torch.equal(old, after[name])
    change = (
        after["model.layers.0.mlp.experts.down_proj"][1]
        - before["model.layers.0.mlp.experts.down_proj"][1]
    )
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 3


def test_a_forward_pass_that_fails_leaves_the_parameter_in_its_place():
    model = _model()
    add_low_rank(model, _rows(model), 2)
    experts = model.model.layers[0].mlp.experts
    with pytest.raises((TypeError, RuntimeError)):
        experts("no tensor", None, None)
    assert "gate_up_proj" not in vars(experts)
    assert isinstance(experts.gate_up_proj, torch.nn.Parameter)


def test_what_cannot_be_adapted_is_refused():
    model = _model()
    with pytest.raises(RecipeError, match="expected at least 1, got 0"):
        add_low_rank(model, {}, 0)
    with pytest.raises(RecipeError, match="for fused experts, got 2-D"):
        add_low_rank(model, {"lm_head.weight": (1,)}, 2)
