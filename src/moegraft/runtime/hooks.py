"""What the routers and layers of a live model do, handed out by forward hooks as it happens.

Every router of the catalogue's families returns (logits, weights, indices) for the flattened
tokens of a batch, so one hook sees everything. Two do otherwise before transformers 5.21.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moegraft.errors import IncompatibleError
from moegraft.families import Family


@dataclass(frozen=True, slots=True)
class Routing:
    """What the router of one layer decided for the tokens of one forward pass that count.

    Tokens are in row-major order of the batch, padding left out, so two models that read the same
    batch can be compared line by line.
    """

    layer: int
    experts: Int[Tensor, "token top_k"]
    """The chosen experts; their order means nothing."""
    weights: Float[Tensor, "token top_k"]
    """What the outputs of `experts` are multiplied with, as the model computes it."""
    logits: Float[Tensor, "token expert"]
    hidden: Float[Tensor, "token hidden"]
    """What the router read."""
    scores_by_sigmoid: bool
    """DeepSeek-V3's kind of router: each expert scored on its own; all others use a softmax."""

    def probabilities(self) -> Float[Tensor, "token expert"]:
        """The router's distribution over all experts, in float32, each row adding up to 1."""
        return distribution(self.logits, by_sigmoid=self.scores_by_sigmoid)


def distribution(
    logits: Float[Tensor, "token expert"], *, by_sigmoid: bool
) -> Float[Tensor, "token expert"]:
    """Router logits as a distribution over experts: softmax, or sigmoids divided by their sum."""
    if not by_sigmoid:
        return logits.float().softmax(-1)
    scores = logits.float().sigmoid()
    return scores / scores.sum(-1, keepdim=True)


def routers(model: nn.Module, family: Family) -> dict[int, nn.Module]:
    """The router modules of a live model by layer; dense layers have none.

    Raises:
        IncompatibleError: the model has no routers.
    """
    found = {}
    for layer in range(_num_layers(model) if family.router_module else 0):
        assert family.router_module
        module = _submodule(model, family.router_module.format(layer=layer))
        if module is not None:
            found[layer] = module
    if not found:
        raise IncompatibleError(
            f"{type(model).__name__} has no routers; expected a Mixture-of-Experts model"
        )
    return found


@contextmanager
def observed(
    model: nn.Module,
    family: Family,
    observe: Callable[[Routing], None],
    mask: Bool[Tensor, "row token"] | None = None,
) -> Iterator[None]:
    """Within this block, call `observe` with what each router decides, layer by layer.

    The hooks are gone when the block ends, also by an exception. Nothing is kept: memory is one
    layer's routing.

    Args:
        model: a live model.
        family: of the model.
        observe: called once per router and forward pass; must not write into the tensors.
        mask: the tokens that count (padding is false), for all forward passes of the block; None
            for all tokens.

    Raises:
        IncompatibleError: the model has no routers.
    """
    keep = None if mask is None else mask.reshape(-1).nonzero().squeeze(1)
    with ExitStack() as hooks:
        top_k = getattr(_text_config(model), "num_experts_per_tok", None)
        for layer, module in routers(model, family).items():
            hook = _routing_hook(observe, layer, keep, top_k)
            hooks.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def observed_hidden(
    model: nn.Module,
    family: Family,
    observe: Callable[[int, Float[Tensor, "token hidden"]], None],
    mask: Bool[Tensor, "row token"] | None = None,
) -> Iterator[None]:
    """Within this block, call `observe` with (layer, hidden states behind it), layer by layer.

    As `observed`; works for dense models too.
    """
    keep = None if mask is None else mask.reshape(-1).nonzero().squeeze(1)
    with ExitStack() as hooks:
        for layer in range(_num_layers(model)):
            module = model.get_submodule(f"{family.roots[0]}layers.{layer}")
            hook = _hidden_hook(observe, layer, keep)
            hooks.callback(module.register_forward_hook(hook).remove)
        yield


def _routing_hook(
    observe: Callable[[Routing], None], layer: int, keep: Tensor | None, top_k: int | None
) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        logits, weights, experts = (_kept(tensor, keep) for tensor in _decision(output, top_k))
        by_sigmoid = hasattr(module, "e_score_correction_bias")
        observe(Routing(layer, experts, weights, logits, _kept(args[0], keep), by_sigmoid))

    return hook


def _decision(output: Any, top_k: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """What a router returned as (logits, weights, indices), whatever the version of transformers.

    Before 5.21 Granite's returned (indices, weights, logits), and Jamba's was a linear layer whose
    softmax and top-k stood outside.
    """
    if isinstance(output, Tensor):
        assert top_k is not None
        weights, experts = output.float().softmax(-1).topk(top_k, dim=-1)
        return output, weights.to(output.dtype), experts
    first, weights, last = output
    return (first, weights, last) if first.is_floating_point() else (last, weights, first)


def _hidden_hook(
    observe: Callable[[int, Tensor], None], layer: int, keep: Tensor | None
) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        observe(layer, _kept(hidden, keep))

    return hook


def _kept(tensor: Tensor, keep: Tensor | None) -> Tensor:
    """The rows of the flattened tokens that count."""
    flat = tensor.reshape(-1, tensor.shape[-1])
    return flat if keep is None else flat[keep.to(flat.device)]


def _text_config(model: Any) -> Any:
    return model.config.get_text_config(decoder=True)


def _num_layers(model: Any) -> int:
    return _text_config(model).num_hidden_layers


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
