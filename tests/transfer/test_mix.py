import math

import pytest
import torch
from safetensors.torch import load_file

from moegraft.transfer import apply_plan

NAME = "model.layers.0.self_attn.v_proj.weight"


def composed(plan, out, **options):
    made = plan("attention", **options)
    result = load_file(apply_plan(made, out) / "model.safetensors")[NAME]
    host, donor = (c.path / "model.safetensors" for c in (made.host, made.donors["d"]))
    return result, load_file(host)[NAME], load_file(donor)[NAME]


def test_linear_is_the_weighted_mean(plan, tmp_path):
    result, host, donor = composed(plan, tmp_path / "o", rule="linear", weight=0.25)
    assert torch.equal(result, 0.75 * host + 0.25 * donor)


def test_slerp_follows_the_great_circle(plan, tmp_path):
    result, host, donor = composed(plan, tmp_path / "o", rule="slerp", weight=0.5)
    a, b = host.double().flatten(), donor.double().flatten()
    angle = math.acos(float(a @ b / (a.norm() * b.norm())))
    expected = math.sin(angle / 2) / math.sin(angle) * (a + b)
    # one rounding of each product and of the sum to float32
    assert torch.allclose(result.double().flatten(), expected, rtol=0, atol=3e-7)


def test_slerp_between_parallel_pieces_is_linear(plan, vary, olmoe_pair, tmp_path):
    twice = vary(source=olmoe_pair[0], tensors=lambda t: {n: 2 * x for n, x in t.items()})
    result, host, _ = composed(plan, tmp_path / "o", donor=twice, rule="slerp", weight=0.5)
    assert torch.allclose(result, 1.5 * host)


@pytest.mark.parametrize("rule", ["linear", "slerp"])
def test_weights_0_and_1_are_exact_whatever_the_other_side_holds(plan, vary, tmp_path, rule):
    odd = vary(tensors=lambda t: {n: torch.full_like(x, math.nan) for n, x in t.items()})
    result, host, _ = composed(plan, tmp_path / "o", donor=odd, rule=rule, weight=0)
    assert torch.equal(result, host)
    result, _, donor = composed(plan, tmp_path / "p", host=odd, rule=rule, weight=1)
    assert torch.equal(result, donor)


def test_cast_rounds_once_to_the_hosts_dtype(plan, make_olmoe, olmoe_pair, tmp_path):
    host = make_olmoe(tmp_path / "host", seed=5, dtype="bfloat16")
    result, _, donor = composed(plan, tmp_path / "o", host=host, cast=True)
    assert torch.equal(result, donor.to(torch.bfloat16))
