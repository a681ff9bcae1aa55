import torch

from moegraft.nano.muon import Muon, orthogonalised


def test_singular_values_come_near_one():
    torch.manual_seed(0)
    for shape in ((3, 8, 24), (24, 8), (2, 24, 8)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        # the quintic iteration ends in [0.7, 1.2] by design, not at 1
        assert values.min() > 0.4
        assert values.max() < 1.3


def test_a_step_moves_a_stack_of_matrices_downhill():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(2, 6, 4))
    optimizer = Muon([weight], lr=0.05)
    losses = []
    for _ in range(20):
        loss = weight.square().sum()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]


def test_a_resumed_optimizer_continues_alike():
    torch.manual_seed(0)
    start, gradients = torch.randn(4, 4), torch.randn(4, 4, 4)

    def run(resume: bool) -> torch.Tensor:
        weight = torch.nn.Parameter(start.clone())
        optimizer = Muon([weight], lr=0.1)
        for step, gradient in enumerate(gradients):
            if resume and step == 2:
                saved = optimizer.state_dict()
                optimizer = Muon([weight], lr=0.1)
                optimizer.load_state_dict(saved)
            weight.grad = gradient.clone()
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(False), run(True))
