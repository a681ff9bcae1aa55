import torch

from moegraft.xpert.decompose import Decomposition, Factored, decompose_layer
from moegraft.xpert.experts import ExpertStack
from moegraft.xpert.leverage import choose, evenly, hidden_scores, neuron_scores, shares
from moegraft.xpert.ranks import FULL, parse_ranks
from moegraft.xpert.resize import pick

FFN, HIDDEN = 6, 8


def layer(ranks, seed=0):
    torch.manual_seed(seed)
    shapes = ((3, FFN, HIDDEN), (3, FFN, HIDDEN), (3, HIDDEN, FFN))
    stack = ExpertStack(*(torch.randn(shape) for shape in shapes))
    return decompose_layer(stack, Decomposition(ranks=ranks))


def test_the_best_are_kept_in_order_and_doubled_first():
    scores = torch.tensor([1.0, 4.0, 2.0, 4.0])
    assert choose(scores, 2).tolist() == [1, 3]
    assert choose(scores, 3).tolist() == [1, 2, 3]
    assert choose(scores, 4).tolist() == [0, 1, 2, 3]
    assert choose(scores, 7).tolist() == [0, 1, 2, 3, 1, 3, 2]
    assert choose(scores, 9).tolist() == [0, 1, 2, 3, 1, 3, 2, 0, 1]
    assert shares(choose(scores, 6)).tolist() == [1, 0.5, 1, 0.5, 0.5, 0.5]


def test_even_spacing_takes_every_nth():
    assert evenly(8, 4).tolist() == [1, 3, 5, 7]
    assert evenly(3, 3).tolist() == [0, 1, 2]
    assert evenly(2, 4).tolist() == [0, 0, 1, 1]


def test_selecting_rows_of_factors_is_selecting_rows_and_columns_of_the_matrix():
    found = layer(parse_ranks("3,4,2"))["gate"]
    rows, columns = torch.tensor([5, 0, 0]), torch.tensor([7, 2])
    assert torch.allclose(pick(found, rows, columns), found.matrix()[rows][:, columns], atol=1e-6)


def test_neurons_are_scored_by_leverage_and_by_norm_where_leverage_is_flat():
    some = layer(parse_ranks("3,4,2"))
    by_hand = some["gate"].rows.square().sum(1) + some["up"].rows.square().sum(1)
    by_hand += some["down"].columns.square().sum(1)
    assert torch.allclose(neuron_scores(some), by_hand)
    full = layer(FULL)
    norms = sum(
        found.matrix().square().sum(axis) / found.matrix().square().sum()
        for found, axis in ((full["gate"], 1), (full["up"], 1), (full["down"], 0))
    )
    assert torch.allclose(neuron_scores(full), norms)
    weak = {name: Factored(one.matrix(), None, None, {}) for name, one in full.items()}
    weak["gate"].core[2] = weak["up"].core[2] = weak["down"].core[:, 2] = 0
    assert int(neuron_scores(weak).argmin()) == 2


def test_residual_dimensions_are_scored_over_all_layers():
    first, second = layer(parse_ranks("3,4,2")), layer(parse_ranks("3,4,2"), seed=1)
    together = hidden_scores([first, second])
    assert torch.allclose(together, hidden_scores([first]) + hidden_scores([second]))
    assert (
        float(together.sum()) == torch.tensor(2.0 * (4 + 4 + 4)).item()
    )  # a leverage adds up to its rank
