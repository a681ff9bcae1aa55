"""Reuse of everything below the first layer that changed, for a fixed sequence of forward passes.

Where only layers from k on differ between two configurations, all that the lower ones compute is
the same numbers again. A `Trunk` keeps what entered the layers when the passes were made first;
later the same passes start at layer k. The keys and values of lower layers are read by nobody
above them, so they are not even stored. Results are bit-identical to those of full passes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moegraft.families import Family
from moegraft.runtime.swap import Patch

MAX_BYTES = 2**30
"""Memory that a trunk may fill unless told otherwise."""


class TrunkMismatchError(RuntimeError):
    """Another forward pass than the recorded one: nothing of it can be reused."""


@dataclass(slots=True)
class _Pass:
    """One recorded forward pass."""

    ids: Int[Tensor, "row token"]
    entering: dict[int, Float[Tensor, "row token hidden"]] = field(default_factory=dict)
    """Hidden states by the layer they enter."""


class Trunk:
    """What entered the layers of a model in a sequence of forward passes.

    Args:
        layers: of the model, see `plain_layers`; at least one.
        embedding: the model's input embedding.
        max_bytes: when hidden states would take more, every other layer's are dropped, and a pass
            starts at the nearest layer below that is left.
    """

    def __init__(
        self, layers: Sequence[nn.Module], embedding: nn.Module, *, max_bytes: int = MAX_BYTES
    ) -> None:
        self._layers, self._embedding = tuple(layers), embedding
        self._max_bytes = max_bytes
        self._passes: list[_Pass] = []
        self.starts = tuple(range(1, len(self._layers)))
        """Layers at which a pass can start, ascending."""
        self.nbytes = 0
        """Memory that the hidden states take."""

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the forward passes of this block anew, under whatever is swapped in.

        Raises:
            TrunkMismatchError: a layer returns something else than its hidden states.
        """
        self._passes, self.nbytes = [], 0
        self.starts = tuple(range(1, len(self._layers)))
        with ExitStack() as hooks:
            keep = self._embedding.register_forward_pre_hook(self._open)
            hooks.callback(keep.remove)
            for place, layer in enumerate(self._layers, 1):
                hooks.callback(layer.register_forward_hook(self._keeper(place)).remove)
            yield

    @contextmanager
    def starting_at(self, layer: int) -> Iterator[int]:
        """Run the recorded passes again, in their order, without the layers below `layer`.

        Every layer below `layer`, and the embedding, must be what it was at the recording. Layers
        are back in place when the block ends, also by an exception.

        Args:
            layer: the first one that may differ, or any above the last one where only the final
                norm or the head does.

        Yields:
            The layer at which passes really start; 0 where nothing can be reused.

        Raises:
            TrunkMismatchError: a pass has other tokens than the recorded one at its place.
        """
        start = max((s for s in self.starts if s <= layer), default=0)
        if not self._passes or not start:
            yield 0
            return
        waiting = iter(self._passes)
        now: list[_Pass] = []

        def turn(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            now[:] = [_matching(next(waiting, None), args[0])]

        with ExitStack() as undo:
            undo.callback(self._embedding.register_forward_pre_hook(turn).remove)
            for below in self._layers[: start - 1]:
                undo.enter_context(_standing_in(below, _unchanged))
            last = self._layers[start - 1]
            undo.enter_context(_standing_in(last, lambda *_, **__: now[0].entering[start]))
            yield start

    def _open(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._passes.append(_Pass(args[0]))

    def _keeper(self, place: int) -> Callable[..., None]:
        def keep(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if not isinstance(output, Tensor):
                raise TrunkMismatchError(f"layer {place - 1} returns more than its hidden states")
            if place in self.starts:
                self._passes[-1].entering[place] = output
                self.nbytes += output.nbytes
                while self.nbytes > self._max_bytes and self.starts:
                    self._thin()

        return keep

    def _thin(self) -> None:
        """Drop every other layer's hidden states; the last to go are those in the middle."""
        self.starts = self.starts[1::2]
        for one in self._passes:
            one.entering = {k: v for k, v in one.entering.items() if k in self.starts}
        self.nbytes = sum(t.nbytes for one in self._passes for t in one.entering.values())


def plain_layers(model: Any, family: Family) -> list[nn.Module]:
    """The decoder layers, where hidden states are all that one hands to the next; else none.

    Families with a recurrent state, and models whose layers stand elsewhere than where the family
    says, have none. That each layer returns just its hidden states is seen when recording.
    """
    if not family.branching_cache:
        return []
    try:
        stack = model.get_submodule(f"{family.roots[0]}layers")
    except AttributeError:
        return []
    size = model.config.get_text_config(decoder=True).num_hidden_layers
    return [*stack] if isinstance(stack, nn.ModuleList) and len(stack) == size else []


def first_changed_layer(patches: Sequence[Patch], family: Family, num_layers: int) -> int:
    """The first layer whose input or weights `patches` change.

    0 where the embedding changes; `num_layers` where only the final norm or the head does, and
    where nothing does.
    """
    places = [family.place(patch.parameter) for patch in patches]
    found = (layer_of(place.component, place.layer, num_layers) for place in places)
    return min(found, default=num_layers)


def layer_of(component: str, layer: int | None, num_layers: int) -> int:
    """The first layer that a tensor of `component` matters to; see `first_changed_layer`."""
    if layer is not None:
        return layer
    return num_layers if component in ("norm", "lm_head") else 0


def _matching(recorded: _Pass | None, ids: Tensor) -> _Pass:
    if recorded is None or not torch.equal(recorded.ids, ids):
        raise TrunkMismatchError("this forward pass is not the one that was recorded")
    return recorded


def _unchanged(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return hidden_states


@contextmanager
def _standing_in(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Within this block `module` computes `forward`; what it had of its own is put back."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
