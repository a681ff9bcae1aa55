"""The line between host and donor weights, and slopes along it."""

from functools import partial

import pytest
import torch

from moegraft.errors import RecipeError, ResourceError
from moegraft.runtime import Host
from moegraft.runtime.path import WeightPath

EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
ROUTER = "model.layers.1.mlp.gate.weight"


@pytest.fixture(scope="module")
def path(host) -> WeightPath:
    return WeightPath(host, "donor")


def snapshot(host):
    return {name: host.parameter(name) for name in host.parameter_names()}


def assert_untouched(host, before, values):
    for name, tensor in host.model.state_dict(keep_vars=True).items():
        assert tensor is before[name]
        assert torch.equal(tensor, values[name])
        assert not tensor.requires_grad
        assert tensor.grad is None


def mean_logit(host, ids):
    return host.model(input_ids=ids).logits[..., 3].mean()


def logits(host, ids):
    with torch.no_grad():
        return host.model(input_ids=ids).logits


def test_the_ends_are_the_host_and_the_donor_bit_for_bit(path, host, ids):
    with host.with_patches(host.donor_patches("donor")):
        donor = logits(host, ids)
    own = logits(host, ids)
    with path.at(1.0):
        assert torch.equal(logits(host, ids), donor)
    with path.at(0.0):
        assert torch.equal(logits(host, ids), own)
        assert host.model.get_parameter(ROUTER).data_ptr() == host.parameter(ROUTER).data_ptr()


def test_the_middle_is_the_mean_of_both(path, host):
    with path.at(0.5):
        now = host.model.get_parameter(EXPERTS)
        mean = (host.parameter(EXPERTS) + host.donor_parameter("donor", EXPERTS)) / 2
        torch.testing.assert_close(now.detach(), mean)


def test_only_what_differs_and_is_wanted_moves(host, olmoe_pair):
    same = Host.load(str(olmoe_pair[0]), {"donor": str(olmoe_pair[0])}, device="cpu")
    assert WeightPath(same, "donor").names == ()
    assert WeightPath(host, "donor", [ROUTER]).names == (ROUTER,)
    assert len(WeightPath(host, "donor").names) == len(set(host.parameter_names()))


def test_a_tied_head_moves_once(make_olmoe, tmp_path):
    sources = [make_olmoe(tmp_path / n, seed=s, tie_word_embeddings=True) for n, s in ("a1", "b2")]
    tied = Host.load(str(sources[0]), {"donor": str(sources[1])}, device="cpu")
    names = WeightPath(tied, "donor").names
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_slopes_add_up_to_the_derivative_and_rows_to_their_tensor(make_olmoe, tmp_path, ids):
    sources = [
        str(make_olmoe(tmp_path / str(seed), seed=seed, num_experts_per_tok=8)) for seed in (1, 2)
    ]  # all experts serve all tokens: nothing jumps
    host = Host.load(sources[0], {"donor": sources[1]}, device="cpu")
    path = WeightPath(host, "donor")

    def loss():
        return host.model(input_ids=ids).logits.double().log_softmax(-1)[..., 7].sum()

    at, step = 0.4, 1e-3
    ends = []
    for share in (at - step, at + step):
        with path.at(share), torch.no_grad():
            ends.append(float(loss()))
    found = path.slopes(at, [loss], by_row=[EXPERTS])
    total = sum(float(sums.sum()) for sums in found.values())
    assert total == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=0.02)
    assert found[EXPERTS].shape == (8,)
    assert found[ROUTER].shape == (1,)
    whole = path.slopes(at, [loss])
    assert float(found[EXPERTS].sum()) == pytest.approx(float(whole[EXPERTS]), rel=1e-5)


def test_two_losses_give_the_sum_of_their_slopes(path, host, ids):
    losses = [partial(mean_logit, host, ids), partial(mean_logit, host, ids[:, :4])]
    apart = [path.slopes(0.7, [loss]) for loss in losses]
    for name, sums in path.slopes(0.7, losses).items():
        torch.testing.assert_close(sums, apart[0][name] + apart[1][name])


def test_the_host_is_untouched_after_slopes_and_after_an_exception(path, host, ids):
    before = snapshot(host)
    values = {name: tensor.clone() for name, tensor in before.items()}
    path.slopes(0.0, [partial(mean_logit, host, ids)])
    assert_untouched(host, before, values)

    def fails():
        host.model(input_ids=ids).logits.sum().backward()
        raise KeyboardInterrupt

    for share in (0.0, 0.3, 1.0):
        with pytest.raises(KeyboardInterrupt):
            path.slopes(share, [fails])
        assert_untouched(host, before, values)
    assert not host.donor_parameter("donor", ROUTER).requires_grad


def test_a_path_needs_both_models_in_memory(olmoe_pair):
    host = Host.load(
        str(olmoe_pair[0]), {"donor": str(olmoe_pair[1])}, device="cpu", memory_budget_bytes=250_000
    )
    assert host.memory.mode == "streamed"
    with pytest.raises(ResourceError, match="needs both in memory"):
        WeightPath(host, "donor")


def test_paths_do_not_nest(path):
    with path.at(0.5), pytest.raises(RecipeError, match="do not nest"), path.at(0.1):
        pass
