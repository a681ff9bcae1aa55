from itertools import pairwise

import pytest
import torch

from moegraft.errors import RecipeError
from moegraft.xpert.ranks import FULL, HALF, PUBLISHED, energy_rank, parse_ranks
from moegraft.xpert.tucker import tucker


def noisy_stack(num=4, rows=10, columns=14, noise=0.3, seed=0):
    """Matrices that share a low-rank part."""
    torch.manual_seed(seed)
    shared = torch.randn(rows, 3, dtype=torch.float64) @ torch.randn(3, columns).double()
    return shared + noise * torch.randn(num, rows, columns, dtype=torch.float64)


def kept(found, stack):
    return float(found.core.square().sum() / stack.square().sum())


@pytest.mark.parametrize("ranks", [(5, 7, 2), (4, 14, 4), (10, 4, 4), (2, 2, 2)])
def test_it_keeps_as_much_as_tensorly(ranks):
    tensorly = pytest.importorskip("tensorly")
    decomposition = pytest.importorskip("tensorly.decomposition")
    stack = noisy_stack()
    with tensorly.backend_context("numpy"):
        order = stack.permute(1, 2, 0).contiguous().numpy()
        core, factors = decomposition.tucker(order, list(ranks), n_iter_max=200, tol=1e-12)
        theirs = tensorly.tucker_to_tensor((core, factors))
    ours = tucker(stack, ranks, num_sweeps=100)
    lost = float((ours.full() - stack).norm() / stack.norm())
    oracle = float((torch.from_numpy(theirs).permute(2, 0, 1) - stack).norm() / stack.norm())
    assert lost == pytest.approx(oracle, rel=1e-3)  # both are local optima
    assert torch.allclose(ours.full().mean(0), torch.from_numpy(theirs).mean(2), atol=0.02)


def test_factors_are_orthonormal_and_the_loss_is_what_the_core_lacks():
    stack = noisy_stack()
    found = tucker(stack, (5, 7, 2))
    for factor in (found.rows, found.columns, found.experts):
        identity = torch.eye(factor.shape[1], dtype=torch.float64)
        assert torch.allclose(factor.T @ factor, identity, atol=1e-12)
    loss = (found.full() - stack).square().sum() / stack.square().sum()
    assert float(loss) == pytest.approx(1 - kept(found, stack), rel=1e-9)


def test_sweeps_never_lose_energy():
    stack = noisy_stack(noise=2.0)
    energies = [kept(tucker(stack, (3, 3, 2), num_sweeps=sweeps), stack) for sweeps in range(6)]
    assert all(b >= a - 1e-12 for a, b in pairwise(energies))
    assert energies[-1] > energies[0]


def test_the_averaged_expert_is_the_projected_weighted_sum():
    stack = noisy_stack()
    found = tucker(stack, (5, 7, 2))
    averaged = found.rows @ found.averaged_core @ found.columns.T
    assert torch.allclose(averaged, found.full().mean(0), atol=1e-12)
    weighted = torch.einsum("k,kpq->pq", found.beta, stack)
    projected = found.rows @ found.rows.T @ weighted @ found.columns @ found.columns.T
    assert torch.allclose(averaged, projected, atol=1e-12)


def test_all_directions_give_the_stack_back_and_the_plain_mean():
    stack = noisy_stack()
    found = tucker(stack, (10, 14, 4))
    assert torch.allclose(found.full(), stack, atol=1e-12)
    assert torch.allclose(found.beta, torch.full((4,), 0.25, dtype=torch.float64))


def test_permuting_experts_changes_nothing_but_the_order_of_beta():
    stack, order = noisy_stack(), [2, 0, 3, 1]
    plain, moved = tucker(stack, (5, 7, 2)), tucker(stack[order], (5, 7, 2))
    assert torch.allclose(plain.full().mean(0), moved.full().mean(0), atol=1e-9)
    assert torch.allclose(plain.beta[order], moved.beta, atol=1e-9)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999, 1.0])
def test_energy_keeps_at_least_what_was_asked(energy):
    stack = noisy_stack()
    found = tucker(stack, None, energy=energy)
    assert kept(found, stack) >= energy - 1e-12
    sizes = [factor.shape[1] for factor in (found.rows, found.columns, found.experts)]
    assert (sizes == [10, 14, 4]) == (energy > 0.99)


def test_a_rank_that_the_others_cannot_fill_is_lowered():
    assert tucker(noisy_stack(), (10, 4, 1)).core.shape == (1, 4, 4)


def test_ranks_are_numbers_fractions_or_names():
    assert parse_ranks("512,1024,2").resolve("gate", (1024, 2048, 4), "") == (512, 1024, 2)
    assert parse_ranks("512,1024,2").resolve("down", (2048, 1024, 4), "") == (1024, 512, 2)
    assert parse_ranks("0.5, 1.0, 3").resolve("up", (10, 14, 4), "") == (5, 14, 3)
    assert parse_ranks("half") is HALF
    assert FULL.resolve("down", (16, 12, 3), "") == (16, 12, 3)
    assert parse_ranks("energy=0.9").energy == 0.9


def test_the_published_ranks_are_those_of_the_authors_for_olmoe():
    assert PUBLISHED.resolve("gate", (1024, 2048, 4), "") == (512, 1024, 2)
    assert PUBLISHED.resolve("down", (2048, 1024, 4), "") == (512, 1024, 2)


@pytest.mark.parametrize(
    "text", ["", "half,half", "0,1,1", "1,2", "energy=2", "energy=x", "-1,2,3"]
)
def test_other_ranks_are_one_clear_line(text):
    with pytest.raises(RecipeError, match="expected half, published, full, energy=SHARE, or three"):
        parse_ranks(text)


def test_ranks_larger_than_an_axis_are_an_error():
    with pytest.raises(RecipeError, match="rank 5 is larger than layer 3 gate, whose axis has 4"):
        parse_ranks("8,8,5").resolve("gate", (10, 14, 4), "layer 3")


def test_energy_ranks_drop_no_more_than_allowed():
    assert energy_rank([4.0, 3.0, 2.0, 1.0], 3.0) == 2
    assert energy_rank([4.0, 3.0, 2.0, 1.0], 2.9) == 3
    assert energy_rank([4.0, 3.0], 100.0) == 1
