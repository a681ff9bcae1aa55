"""The straight line in weight space from a host to a donor, and slopes along it."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from moegraft.errors import IncompatibleError, ResourceError
from moegraft.runtime.host import Host
from moegraft.runtime.swap import Patch, slots
from moegraft.runtime.weights import DTYPES

Sums = dict[str, Float[Tensor, " row"]]
"""By live name; one number per row of the leading axis, or one for the whole tensor."""


class WeightPath:
    """host + share * (donor - host), for share from 0 to 1, over some of the host's tensors.

    Standing on the path costs one more copy of the tensors that differ. The host's own tensors
    are neither written nor asked for gradients: what stands in their place while a point of the
    path is visited are tensors of its own, dropped on leaving, by an exception too.

    Args:
        host: holding `donor` in memory.
        donor: its name.
        wanted: live names to move; by default all. Tensors that agree bit for bit stay out.

    Raises:
        ResourceError: memory holds one model only.
        IncompatibleError: weights are packed, so that nothing lies between them.
        RecipeError: no such donor.
    """

    def __init__(self, host: Host, donor: str, wanted: Collection[str] | None = None) -> None:
        if host.memory.mode != "resident":
            raise ResourceError(
                "the path from host to donor needs both in memory and a third copy; allow more "
                "memory, or use a smaller dtype or a larger device"
            )
        self.host, self.donor = host, donor
        self.names = tuple(self._differing(host.parameter_names(), wanted))
        """Live names of what moves, one for each tensor."""

    def _differing(self, names: Sequence[str], wanted: Collection[str] | None) -> Iterator[str]:
        seen: set[int] = set()
        for name in names:
            own, other = self.host.parameter(name), self.host.donor_parameter(self.donor, name)
            if id(own) in seen or own is other or (wanted is not None and name not in wanted):
                continue
            seen.add(id(own))
            if own.dtype not in DTYPES.values():
                raise IncompatibleError(
                    f"{name} is held as {own.dtype}, which is packed; load with dtype bfloat16"
                )
            yield name

    def difference(self, name: str) -> Float[Tensor, "..."]:
        """Donor minus host, in float32: the direction of the path."""
        return self.host.donor_parameter(self.donor, name).detach().float() - (
            self.host.parameter(name).detach().float()
        )

    @contextmanager
    def at(self, share: float) -> Iterator[None]:
        """Run a block with the model at this point of the path, then restore the host.

        At 0 and 1 nothing is copied.

        Raises:
            RecipeError: a swap context is open already.
        """
        values = {name: partial(self._value, name, share) for name in self.names}
        with self.host.with_patches([Patch(name, value) for name, value in values.items()]):
            yield

    def _value(self, name: str, share: float) -> Tensor:
        own, other = self.host.parameter(name), self.host.donor_parameter(self.donor, name)
        if share in (0, 1):
            # A view, not the object itself: it may be asked for a gradient.
            return (other if share else own).detach()
        with torch.no_grad():
            return (own.float() + share * self.difference(name)).to(own.dtype)

    def slopes(
        self, share: float, losses: Iterable[Callable[[], Tensor]], *, by_row: Collection[str] = ()
    ) -> Sums:
        """Derivative of the summed losses along the path at `share`, split by tensor.

        The sum over everything returned is d/dshare of the sum of the losses. Gradients are
        reduced one tensor at a time as soon as they are there, so that they never exist for the
        whole model; products are taken in float32 and summed in float64.

        Args:
            share: where on the path.
            losses: each runs the model and returns a scalar; differentiated one after another.
            by_row: names whose leading axis is kept (fused experts).

        Returns:
            On the CPU, in float64.
        """
        found: Sums = {}

        def reduce(name: str, tensor: Tensor) -> None:
            assert tensor.grad is not None
            product = tensor.grad.float() * self.difference(name)
            rows = product.flatten(1) if name in by_row else product.reshape(1, -1)
            found[name] += rows.sum(1, dtype=torch.float64).cpu()
            tensor.grad = None

        with self.at(share), torch.enable_grad():
            live = slots(self.host.model)
            for name in self.names:
                tensor = live[name].tensor
                rows = len(tensor) if name in by_row else 1
                found[name] = torch.zeros(rows, dtype=torch.float64)
                tensor.requires_grad_(True)
                tensor.register_post_accumulate_grad_hook(partial(reduce, name))
            for loss in losses:
                value = loss()
                if value.requires_grad:  # not where nothing that moves is used
                    value.backward()
        return found
