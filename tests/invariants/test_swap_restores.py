"""Invariant 5: after any swap context the host's parameters are the same storage and bytes."""

import pytest
import torch

from moegraft.runtime import Host, Patch, fit
from moegraft.runtime.swap import slots


def _identity(model):
    return {
        name: (id(slot.tensor), slot.tensor.data_ptr(), slot.tensor.clone())
        for name, slot in slots(model).items()
    }


def _same(before, after, *, storage):
    for name, (number, pointer, value) in before.items():
        assert after[name][0] == number
        assert not storage or after[name][1] == pointer
        assert torch.equal(after[name][2], value)


@pytest.fixture(scope="module")
def pair(make_olmoe, tmp_path_factory):
    root = tmp_path_factory.mktemp("pair")
    return [str(make_olmoe(root / n, seed=s, num_hidden_layers=8)) for s, n in enumerate("ab")]


@pytest.fixture(scope="module", params=["resident", "streamed"])
def loaded(request, pair):
    need = fit.estimate_memory(pair[0], {}).host_bytes
    budget = int(1.15 * need) if request.param == "streamed" else None
    host = Host.load(pair[0], {"donor": pair[1]}, device="cpu", memory_budget_bytes=budget)
    assert host.memory.mode == request.param
    return host


class _Left(BaseException):
    """Neither an Exception nor known to anyone."""


@pytest.mark.parametrize("leave", [None, ValueError, KeyboardInterrupt, SystemExit, _Left])
def test_a_swap_restores_everything_however_it_is_left(loaded, leave):
    before = _identity(loaded.model)
    experts = "model.layers.3.mlp.experts.down_proj"
    one = Patch(experts, torch.zeros_like(loaded.parameter(experts)[2]), expert=2)
    for patches in (loaded.donor_patches("donor"), [one]):
        try:
            with loaded.with_patches(patches) as model:
                changed = [n for n, (*_, v) in _identity(model).items() if _differs(before, n, v)]
                assert changed
                if leave is not None:
                    raise leave
        except BaseException as error:
            if leave is None or not isinstance(error, leave):
                raise
        _same(before, _identity(loaded.model), storage=loaded.memory.mode == "resident")


def _differs(before, name, value):
    return not torch.equal(before[name][2], value)


def test_a_swap_that_fails_half_way_restores_everything(loaded):
    before = _identity(loaded.model)

    def fails():
        raise KeyboardInterrupt

    patches = [
        *(p for p in loaded.donor_patches("donor") if "layers.7" not in p.parameter),
        Patch("model.layers.7.mlp.gate.weight", fails),
    ]
    with pytest.raises(KeyboardInterrupt), loaded.with_patches(patches):
        pytest.fail("the block must not run")
    _same(before, _identity(loaded.model), storage=loaded.memory.mode == "resident")
    with loaded.with_patches([]):
        pass
