import numpy as np
import pytest
import torch

from moegraft.errors import IncompatibleError, RecipeError
from moegraft.evals.texts import Text
from moegraft.runtime import Host
from moegraft.xpert.decompose import Decomposition
from moegraft.xpert.fit import fit_outputs
from moegraft.xpert.inherit import INHERITABLE
from moegraft.xpert.resize import Resizing
from moegraft.xpert.start import Adaptation, Start
from moegraft.xpert.target import make_target
from small_knowledge import take, target_config


@pytest.fixture(scope="module")
def host(olmoe_pair):
    return Host.load(str(olmoe_pair[0]), {}, device="cpu")


@pytest.fixture(scope="module")
def known(olmoe_pair, tmp_path_factory):
    return take(olmoe_pair[0], tmp_path_factory.mktemp("k") / "k", Decomposition("concat"))


def texts(lengths, first=0):
    rng = np.random.default_rng(0)
    return [
        Text("a", f"a:{i}", tuple(rng.integers(3, 120, size).tolist()), 1, first)
        for i, size in enumerate(lengths)
    ]


def start_of(known, host, how=Resizing(), **sizes):  # noqa: B008
    target = make_target(target_config("olmoe", max_position_embeddings=512, **sizes), "t")
    return Start(target, Adaptation(how, INHERITABLE), known, host.checkpoint)


def test_the_fit_is_the_least_squares_of_the_donors_mixture_on_the_features(known, host):
    start = start_of(known, host, Resizing(depth="repeat"), num_hidden_layers=3)
    given = texts([40, 9, 25])
    seen = {}
    hooks = [
        layer.mlp.register_forward_hook(
            lambda _, x, out, n=n: seen.setdefault(n, []).append((x[0][0], out[0]))
        )
        for n, layer in enumerate(host.model.model.layers)
    ]
    with torch.no_grad():
        for text in given:
            host.model.model(torch.tensor([text.ids]))
    for hook in hooks:
        hook.remove()
    before = {layer: start.ffns.matrices(layer, 0, 16) for layer in range(3)}
    steps = []
    found = fit_outputs(
        host, start.target, start.ffns, given, batch_tokens=50, on_step=lambda *s: steps.append(s)
    )
    assert steps[-1] == (74, 74)
    for layer in range(3):
        x, y = (torch.cat(part) for part in zip(*seen[layer % 2], strict=True))
        h = torch.nn.functional.silu(x @ before[layer]["gate"].T) * (x @ before[layer]["up"].T)
        best = torch.linalg.lstsq(h.double(), y.double()).solution.T
        lost = (h @ found[layer].down.T - y).square().sum()
        assert float(lost) <= 1.01 * float((h.double() @ best.T - y).square().sum())
        assert found[layer].explained == pytest.approx(1 - float(lost / y.square().sum()), abs=1e-4)
        adapted = (h @ before[layer]["down"].T - y).square().sum()
        assert lost < adapted


def test_a_fitted_start_keeps_everything_else(known, host):
    plain, fitted = start_of(known, host), start_of(known, host)
    fitted.fit(host, texts([60, 60]))
    for tensor in plain.target.tensors:
        same = torch.equal(plain.tensor(tensor), fitted.tensor(tensor))
        assert same != tensor.name.endswith("down_proj.weight"), tensor.name
    assert plain.about()["fitted"] is None
    assert set(fitted.about()["fitted"]) == {0, 1}


def test_tokens_that_do_not_count_are_left_out(known, host):
    start = start_of(known, host)
    some = fit_outputs(host, start.target, start.ffns, texts([50, 50]))
    more = fit_outputs(host, start.target, start.ffns, texts([50, 50], first=20))
    assert not torch.equal(some[0].down, more[0].down)


def test_what_cannot_be_fitted_is_one_line(known, host):
    start = start_of(known, host, num_experts=2)
    with pytest.raises(IncompatibleError, match="layer 0 has several FFNs"):
        start.fit(host, texts([9]))
    with pytest.raises(RecipeError, match="--fit: expected texts"):
        start_of(known, host).fit(host, [])
    with pytest.raises(RecipeError, match="expected FFNs that start from knowledge"):
        Start(start.target, Adaptation(), None).fit(host, texts([9]))
