"""Swap with too little memory for two models: each exchanged tensor is dropped and read back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from moegraft.runtime.swap import Patch, by_tensor, exclusively, replacement
from moegraft.runtime.weights import Weights, same_bits


@contextmanager
def exchanged(model: nn.Module, patches: Sequence[Patch], own: Weights) -> Iterator[None]:
    """Run a block with `patches` applied, holding one model and one tensor at any time.

    Tensor by tensor, the new one is made, the model's own storage is dropped, and the parameter
    gets the new storage; tensors that agree bit for bit are left alone. On exit, by an exception
    too, the dropped ones are read again from the model's own files. So unlike in `swapped`, what
    is restored is the same parameter objects with the same bytes, in new storage.

    Args:
        model: the live host; its files must stay where they are.
        patches: as in `swapped`; functions as values keep donor tensors off memory until needed.
        own: the model's own tensors, read on demand.

    Raises:
        CheckpointError: a file has gone; the model is then unusable.
        IncompatibleError: as `swapped`.
        RecipeError: as `swapped`.
    """
    with exclusively(model):
        touched = []
        try:
            for slot, group in by_tensor(model, patches):
                new = replacement(slot, group)
                if new is slot.tensor or same_bits(new, slot.tensor):
                    continue
                touched.append(slot)
                slot.tensor.data = new.detach()
                del new
            yield
        finally:
            for slot in touched:
                slot.tensor.data = own[slot.name]
