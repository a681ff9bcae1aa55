import pytest
import torch
from torch.nn.functional import silu

from moegraft.errors import RecipeError
from moegraft.xpert.align import align_neurons
from moegraft.xpert.decompose import METHODS, Decomposition, decompose_layer
from moegraft.xpert.experts import ExpertStack
from moegraft.xpert.ranks import FULL, parse_ranks

FFN, HIDDEN, NUM = 6, 8, 3


def stack_of(num=NUM, seed=0):
    torch.manual_seed(seed)
    shapes = ((num, FFN, HIDDEN), (num, FFN, HIDDEN), (num, HIDDEN, FFN))
    return ExpertStack(*(torch.randn(shape, dtype=torch.float64) for shape in shapes))


def ffn(gate, up, down, x):
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


@pytest.mark.parametrize("name", ["gate", "up", "down"])
def test_full_ranks_are_the_plain_mean(name):
    stack = stack_of()
    exact = decompose_layer(stack, Decomposition(ranks=FULL))[name]
    plain = decompose_layer(stack, Decomposition("mean"))[name]
    assert torch.allclose(exact.matrix(), stack.matrix(name).mean(0), atol=1e-12)
    assert torch.equal(plain.matrix(), stack.matrix(name).mean(0))
    assert exact.diagnostics["retained_energy"] == pytest.approx(1)
    assert exact.diagnostics["norm_ratio"] == pytest.approx(plain.diagnostics["norm_ratio"])
    assert exact.diagnostics["sum_beta"] == pytest.approx(1)
    svd = decompose_layer(stack, Decomposition("svd", FULL))[name]
    assert torch.allclose(svd.matrix(), plain.matrix(), atol=1e-12)


def test_the_single_expert_is_the_best_one():
    stack = stack_of()
    found = decompose_layer(stack, Decomposition("single"))
    assert torch.equal(found["up"].matrix(), stack.up[0])
    assert found["up"].diagnostics["beta"] == [1, 0, 0]


def test_concatenated_experts_compute_the_sum_of_their_outputs():
    stack = stack_of()
    found = decompose_layer(stack, Decomposition("concat"))
    gate, up, down = (found[name].matrix() for name in ("gate", "up", "down"))
    assert (gate.shape, down.shape) == ((NUM * FFN, HIDDEN), (HIDDEN, NUM * FFN))
    x = torch.randn(5, HIDDEN, dtype=torch.float64)
    parts = [ffn(stack.gate[k], stack.up[k], stack.down[k], x) for k in range(NUM)]
    assert torch.allclose(ffn(gate, up, down, x), torch.stack(parts).sum(0))


def test_aligning_undoes_a_permutation_and_changes_no_expert():
    plain = stack_of(1)
    orders = [torch.arange(FFN), torch.randperm(FFN), torch.randperm(FFN)]
    mixed = ExpertStack(
        torch.stack([plain.gate[0][order] for order in orders]),
        torch.stack([plain.up[0][order] for order in orders]),
        torch.stack([plain.down[0][:, order] for order in orders]),
    )
    _, found = align_neurons(mixed)
    for order, got in zip(orders, found, strict=True):
        assert torch.equal(order[got], torch.arange(FFN))
    together = decompose_layer(mixed, Decomposition("mean", align=True))
    apart = decompose_layer(mixed, Decomposition("mean"))
    assert torch.allclose(together["down"].matrix(), plain.down[0])
    assert apart["down"].diagnostics["norm_ratio"] < together["down"].diagnostics["norm_ratio"]
    other = stack_of()
    moved, _ = align_neurons(other)
    x = torch.randn(5, HIDDEN, dtype=torch.float64)
    for k in range(NUM):
        before = ffn(other.gate[k], other.up[k], other.down[k], x)
        assert torch.allclose(ffn(moved.gate[k], moved.up[k], moved.down[k], x), before)
    assert not torch.equal(moved.gate[1], other.gate[1])


def cancelling():
    """Two strong experts that point apart and two weak ones: the mean lies in no kept direction."""
    torch.manual_seed(1)
    strong, weak = torch.randn(FFN, HIDDEN).double(), 0.1 * torch.randn(FFN, HIDDEN).double()
    gate = torch.stack([strong, -strong, weak, weak])
    return ExpertStack(gate, gate, gate.transpose(1, 2).contiguous())


def test_a_collapsed_average_is_told_and_mended():
    ranks = parse_ranks("1.0,1.0,1")
    faithful = decompose_layer(cancelling(), Decomposition(ranks=ranks, safe=False))["gate"]
    assert faithful.diagnostics["collapsed"]
    assert faithful.diagnostics["sum_beta"] < 0.05
    assert faithful.diagnostics["norm_ratio"] < 0.05
    safe = decompose_layer(cancelling(), Decomposition(ranks=ranks))["gate"]
    assert safe.diagnostics["collapsed"] and safe.diagnostics["made_safe"]
    assert safe.diagnostics["ranks"][2] == 4
    assert torch.allclose(safe.matrix(), cancelling().gate.mean(0), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_energy_and_half_ranks_work_with_every_method(method):
    for ranks in ("half", "published", "energy=0.8"):
        found = decompose_layer(stack_of(), Decomposition(method, parse_ranks(ranks)))
        assert all(torch.isfinite(one.matrix()).all() for one in found.values())
        kept = found["gate"].diagnostics["retained_energy"]
        assert ranks != "energy=0.8" or kept is None or kept >= 0.8


def test_nothing_is_random():
    first, second = (decompose_layer(stack_of(), Decomposition())["up"] for _ in range(2))
    assert torch.equal(first.matrix(), second.matrix())


def test_a_wrong_choice_is_one_clear_line():
    with pytest.raises(RecipeError, match="method 'cp': expected one of tucker, svd, mean"):
        Decomposition("cp")
    with pytest.raises(RecipeError, match="rank 9 is larger than layer 3: gate, whose axis has 6"):
        stack = stack_of()
        decompose_layer(stack, Decomposition(ranks=parse_ranks("9,8,1")), "layer 3")
