import pytest
import torch

from moegraft.errors import FrozenMovedError, RecipeError
from moegraft.train.freeze import Trainable, freeze
from moegraft.train.rows import runs
from tiny_families import build_tiny

EXPERT = Trainable(rows={"model.layers.*.mlp.experts.*": (1,)})


@pytest.fixture
def model():
    return build_tiny("olmoe").train()


def _step(model, optimizer):
    ids = torch.arange(32).reshape(2, 16)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_published_expert_name_is_refused_because_live_experts_are_fused(model):
    with pytest.raises(RecipeError, match=r"'model.layers.0.mlp.experts.1.\*' matches no param"):
        freeze(model, Trainable(whole=("model.layers.0.mlp.experts.1.*",)))


@pytest.mark.parametrize(
    ("trainable", "message"),
    [
        (Trainable(rows={"lm_head.weight": (64,)}), "row 64 of lm_head.weight, expected some of 0"),
        (Trainable(rows={"lm_head.weight": ()}), "no row of lm_head.weight"),
        (Trainable(), "nothing would train"),
    ],
)
def test_what_cannot_open_is_refused(model, trainable, message):
    with pytest.raises(RecipeError, match=message):
        freeze(model, trainable)


def test_tied_embeddings_open_together():
    model = build_tiny("qwen3")
    frozen = freeze(model, Trainable(whole=("lm_head.weight",)))
    assert model.model.embed_tokens.weight.requires_grad
    with torch.no_grad():
        model.lm_head.weight[3] += 1
    frozen.check()
    contradictory = {"lm_head.weight": (1,), "model.embed_tokens.weight": (2,)}
    with pytest.raises(RecipeError, match="are tied"):
        freeze(model, Trainable(rows=contradictory))


def test_the_check_names_the_expert_that_moved(model):
    frozen = freeze(model, EXPERT)
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[1] += 1
    frozen.check()
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[2, 0, 0] += 1
    with pytest.raises(
        FrozenMovedError, match=r"^model.layers.1.mlp.experts.down_proj\[2\]: is frozen"
    ):
        frozen.check()


def test_gradients_of_frozen_experts_do_not_count_when_clipping(model):
    frozen = freeze(model, EXPERT)
    ids = torch.arange(32).reshape(2, 16)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    gradient = model.model.layers[0].mlp.experts.gate_up_proj.grad
    assert gradient[1].any() and not gradient[[0, 2, 3]].any()
    assert frozen.num_open() == 2 * 3 * 24 * 16


def test_a_guarded_optimizer_resumes_from_its_state(model):
    def make():
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        frozen.guard(optimizer)
        return optimizer

    frozen = freeze(model, EXPERT)
    optimizer = make()
    _step(model, optimizer)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    saved = {"optimizer": optimizer.state_dict(), "model": weights}
    saved = torch.load(_stored(saved), weights_only=True)
    _step(model, optimizer)
    wanted = model.model.layers[0].mlp.experts.down_proj.detach().clone()
    model.load_state_dict(saved["model"])
    again = make()
    again.load_state_dict(saved["optimizer"])
    _step(model, again)
    assert torch.equal(model.model.layers[0].mlp.experts.down_proj, wanted)
    frozen.check()


def _stored(content):
    from io import BytesIO

    buffer = BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return buffer


def test_an_optimizer_guarded_late_keeps_the_state_of_the_open_experts(model):
    frozen = freeze(model, EXPERT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    _step(model, optimizer)
    parameter = model.model.layers[0].mlp.experts.down_proj
    momentum = optimizer.state[parameter]["momentum_buffer"].clone()
    frozen.guard(optimizer)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(optimizer.state[parameter]["momentum_buffer"][0], 0.9 * momentum[1])


def test_rows_that_do_not_touch_are_trained_and_scattered_back(model):
    frozen = freeze(model, Trainable(rows={"lm_head.weight": (2, 3, 50)}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    frozen.guard(optimizer)
    before = model.lm_head.weight.detach().clone()
    _step(model, optimizer)
    moved = (model.lm_head.weight != before).any(1).nonzero().flatten().tolist()
    assert moved == [2, 3, 50]


def test_a_closure_is_refused(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    freeze(model, EXPERT).guard(optimizer)
    with pytest.raises(RecipeError, match="cannot take a closure"):
        optimizer.step(lambda: 0.0)


def test_a_step_that_fails_leaves_the_optimizer_usable(model):
    frozen = freeze(model, EXPERT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    frozen.guard(optimizer)
    params = optimizer.param_groups[0]["params"]
    broken = optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _step(model, optimizer)
    broken.remove()
    optimizer.zero_grad()
    model.zero_grad()
    _step(model, optimizer)
    assert optimizer.param_groups[0]["params"] is params
    frozen.check()


def test_release_undoes_everything(model):
    frozen = freeze(model, EXPERT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    frozen.guard(optimizer)
    frozen.release()
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = model.model.layers[0].mlp.experts.down_proj[0].detach().clone()
    _step(model, optimizer)
    assert not torch.equal(model.model.layers[0].mlp.experts.down_proj[0], before)


def test_rows_fall_into_runs():
    assert runs([1, 2, 3, 7, 9, 10]) == [range(1, 4), range(7, 8), range(9, 11)]
    assert runs([]) == []
