"""Fit the down projections of a start to what the donor's FFNs compute on texts (not the paper's).

Gate and up of a target's layer say which features of its input it has. The best outputs of these
features, in least squares over the texts' tokens, are a linear regression of the output of the
donor's whole mixture, routing and all, on them: forward passes and one solve per layer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.activations import ACT2FN

from moegraft.errors import IncompatibleError, RecipeError
from moegraft.evals.texts import Text
from moegraft.runtime.batches import batches
from moegraft.xpert.resize import Ffns
from moegraft.xpert.target import Target

RIDGE = 1e-3
"""Added to the features' mean square, as a share of it."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """The down projection of one layer of the target."""

    down: Float[Tensor, "hidden ffn"]
    explained: float
    """Share of the mean square of the donor's FFN output that it gives on the texts."""


class _Regression:
    """Sums of products of one layer's features and outputs."""

    def __init__(self, gate: Tensor, up: Tensor, residual: Tensor, activation: str) -> None:
        self._gate, self._up, self._residual = gate, up, residual
        self._act = ACT2FN[activation]
        size = len(gate)
        self.features = torch.zeros(size, size, dtype=torch.float64, device=gate.device)
        self.products = torch.zeros(size, len(residual), dtype=torch.float64, device=gate.device)
        self.outputs = 0.0

    def add(
        self, inputs: Float[Tensor, "token donor_hidden"], outputs: Float[Tensor, "token _"]
    ) -> None:
        x, y = inputs[:, self._residual].float(), outputs[:, self._residual].float()
        h = self._act(x @ self._gate.T) * (x @ self._up.T)
        self.features += (h.T @ h).double()
        self.products += (h.T @ y).double()
        self.outputs += float(y.double().square().sum())

    def solve(self) -> Fitted:
        ridge = RIDGE * self.features.diagonal().mean().clamp(min=1e-30)
        regular = self.features + ridge * torch.eye(len(self.features)).to(self.features)
        weights = torch.linalg.solve(regular, self.products)
        gained = 2 * (weights * self.products).sum()
        gained -= (weights * (self.features @ weights)).sum()
        explained = float(gained) / max(self.outputs, 1e-300)
        return Fitted(weights.T.float().cpu().contiguous(), explained)


@torch.no_grad()
def fit_outputs(
    host: Any,
    target: Target,
    ffns: Ffns,
    texts: Sequence[Text],
    *,
    batch_tokens: int = 4096,
    on_step: Callable[[int, int], None] = lambda num_done, num_tokens: None,
) -> dict[int, Fitted]:
    """Fit every layer of a dense target; one pass of the donor over the texts.

    Memory beside the donor: the square of the FFN's width for every layer of the target.

    Args:
        host: the donor as a `runtime.Host`.
        target: whose layers are fitted; it should inherit the donor's trunk, without which the
            residual dimensions mean nothing to it.
        ffns: its FFNs, whose gate and up stay.
        texts: of all domains.
        batch_tokens: of one forward pass, padding included.
        on_step: called with the number of tokens read, and of all.

    Returns:
        By layer of the target.

    Raises:
        IncompatibleError: the target has layers of several experts.
        RecipeError: no text.
    """
    if not texts:
        raise RecipeError("--fit: expected texts")
    device = host.model.get_input_embeddings().weight.device
    sums: dict[int, list[_Regression]] = {}
    made = {}
    for layer, width in _widths(target).items():
        found = ffns.matrices(layer, 0, width)
        gate, up = (found[name].to(device) for name in ("gate", "up"))
        assert target.activation is not None
        made[layer] = _Regression(gate, up, ffns.residual.to(device), target.activation)
        sums.setdefault(ffns.layers[layer], []).append(made[layer])
    ids, firsts = [text.ids for text in texts], [text.first for text in texts]
    total, done = sum(map(len, ids)), 0
    for batch in batches(ids, batch_tokens, device, firsts):
        keep = batch.counted.reshape(-1)
        with _observed_ffns(host, sums, keep):
            host.model.get_decoder()(batch.ids, attention_mask=batch.mask.long(), use_cache=False)
        done += int(batch.mask.sum())
        on_step(done, total)
    return {layer: regression.solve() for layer, regression in made.items()}


def _widths(target: Target) -> dict[int, int]:
    found: dict[int, int] = {}
    for tensor in target.tensors:
        for piece in tensor.pieces:
            if not tensor.is_ffn or not piece.key.role.startswith("gate"):
                continue
            layer = piece.key.layer
            assert layer is not None
            if layer in found:
                raise IncompatibleError(
                    f"{target.source}: --fit: layer {layer} has several FFNs, whose shares "
                    "routing decides; expected a dense target"
                )
            found[layer] = piece.shape[0]
    return found


@contextmanager
def _observed_ffns(
    host: Any, sums: Mapping[int, Sequence[_Regression]], keep: Bool[Tensor, " token"]
) -> Iterator[None]:
    """Hand inputs and outputs of the donor's mixtures to the regressions that want them."""
    template = host.checkpoint.family.router_module
    with ExitStack() as hooks:
        for layer, regressions in sums.items():
            path = template.format(layer=layer).rpartition(".")[0]

            def hook(_: Any, given: Any, out: Any, own: Any = tuple(regressions)) -> None:
                output = out[0] if isinstance(out, tuple) else out
                size = output.shape[-1]
                for one in own:
                    one.add(given[0].reshape(-1, size)[keep], output.reshape(-1, size)[keep])

            hooks.callback(host.model.get_submodule(path).register_forward_hook(hook).remove)
        yield
