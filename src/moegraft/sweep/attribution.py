"""How much each unit of a donor adds to the gold answers: gradients on a path, and baselines."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from moegraft.evals.condition import Item
from moegraft.evals.gold import (
    MAX_TOKENS,
    gold_batches,
    gold_logprob_sum,
    gold_logprobs,
)
from moegraft.runtime import Host
from moegraft.runtime.hooks import Routing, observed
from moegraft.runtime.path import WeightPath
from moegraft.sweep.design import DONOR
from moegraft.sweep.units import QkNorm, fold, recipe_of
from moegraft.transfer.live import patches
from moegraft.transfer.plan import plan_transfer
from moegraft.transfer.scope import Slot

Rule = Literal["midpoint", "gauss"]
"""Where on the path gradients are taken: the middles of equal parts, or Gauss-Legendre nodes.

Gauss-Legendre is far better on smooth curves; here the curve jumps where tokens change experts.
"""

_BY_TOKEN = ("embedding", "lm_head")


@dataclass(frozen=True)
class Question:
    """A host, its donor, and the items on which they are compared.

    Everything is measured in nats per item: the mean log-probability of the gold answer.
    """

    host: Host
    """Loaded with a donor named `donor`, both in memory."""
    items: tuple[Item, ...]
    components: tuple[str, ...] | None = None
    """What moves along the path; None for all that a recipe can move."""
    qk_norm: QkNorm = "attention"
    max_tokens: int = MAX_TOKENS
    """Tokens of one forward pass."""

    @cached_property
    def path(self) -> WeightPath:
        """From host to donor.

        Token embeddings stay out between tokenizers that number their tokens differently, and so
        does what never moves (`extra`).
        """
        place = self.host.checkpoint.family.place
        left_out = {"extra", *(_BY_TOKEN if self.host.id_maps_differ[DONOR] else ())}
        wanted = [
            name
            for name in self.host.parameter_names()
            if (component := place(name).component) not in left_out
            and (self.components is None or component in self.components)
        ]
        return WeightPath(self.host, DONOR, wanted)

    def logprobs(self, items: Sequence[Item] | None = None) -> Float[np.ndarray, " item"]:
        """Log-probabilities of the gold answers under whatever is swapped in."""
        asked = self.items if items is None else items
        return gold_logprobs(self.host, asked, max_tokens=self.max_tokens)

    @contextmanager
    def taking(self, units: Sequence[Slot]) -> Iterator[None]:
        """Run a block with `units` of the donor swapped in, exactly as a transfer moves them.

        Raises:
            RecipeError: a unit that a recipe cannot move.
            IncompatibleError: the donor does not fit.
        """
        donor = self.host.donor_checkpoints[DONOR]
        recipe = recipe_of(self.host.checkpoint.source, donor.source, units, self.qk_norm)
        plan = plan_transfer(recipe, self.host.checkpoint, {DONOR: donor})
        with self.host.with_patches(patches(plan, self.host)):
            yield

    @contextmanager
    def taking_all(self) -> Iterator[None]:
        """Run a block at the end of the path: all that moves is the donor's."""
        with self.path.at(1.0):
            yield

    def sum_by(self, values: dict[Slot, float], units: Sequence[Slot]) -> dict[Slot, float]:
        """`values` of the finest slots summed by unit."""
        return fold(values, units, self.host.checkpoint, self.qk_norm)


def nodes_of(rule: Rule, num_points: int) -> tuple[tuple[float, float], ...]:
    """Places on [0, 1] and their weights, which sum to 1."""
    assert num_points >= 1
    if rule == "midpoint":
        return tuple(((k + 0.5) / num_points, 1 / num_points) for k in range(num_points))
    places, weights = np.polynomial.legendre.leggauss(num_points)
    return tuple(zip(((places + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))


def integrated_gradients(
    question: Question,
    *,
    num_points: int = 4,
    rule: Rule = "midpoint",
    on_step: Callable[[], None] = lambda: None,
) -> dict[Slot, float]:
    """Integrated gradients of the mean gold log-probability along the path from host to donor.

    For a unit u with weights h_u in the host and d_u in the donor, and f the mean gold
    log-probability: A_u = (d_u - h_u) . integral from 0 to 1 of grad_u f(h + s (d - h)) ds
    (Sundararajan, Taly & Yan 2017, arXiv:1703.01365, with weights in the place of inputs and the
    host as the baseline), by a quadrature rule. If f is smooth along the path, all A_u sum to
    f(donor) - f(host); where a token changes experts f jumps, and gradients do not see it.

    One forward and one backward pass over the items per point, however many units there are.
    Memory: a copy of the tensors that differ, and the activations of one batch.

    Args:
        question: what is compared.
        num_points: places on the path.
        rule: how they are chosen.
        on_step: called after each batch; `num_steps` says how often.

    Returns:
        Nats per item for every slot that differs: component, layer, and expert where it has one.

    Raises:
        EvalDataError: an item has no gold answer.
        ResourceError: host and donor are not both in memory.
    """
    totals: dict[Slot, float] = {}
    for share, weight in nodes_of(rule, num_points):
        for slot, slope in slopes_at(question, share, on_step=on_step).items():
            totals[slot] = totals.get(slot, 0.0) + weight * slope
    return totals


def num_steps(question: Question, num_points: int) -> int:
    """How many batches `integrated_gradients` differentiates."""
    batches = gold_batches(question.host.model, question.items, max_tokens=question.max_tokens)
    return num_points * len(batches)


def slopes_at(
    question: Question, share: float, *, on_step: Callable[[], None] = lambda: None
) -> dict[Slot, float]:
    """Derivative of the mean gold log-probability along the path at `share`, by slot.

    At 0 this is the first-order estimate of moving each unit (attribution patching, in weights).
    """
    model, family = question.host.model, question.host.checkpoint.family
    places = {name: family.place(name) for name in question.path.names}
    stacked = {name for name, place in places.items() if place.rule.stacked}
    batches = gold_batches(model, question.items, max_tokens=question.max_tokens)

    def losses() -> Iterator[Callable[[], Tensor]]:
        for batch in batches:
            yield partial(gold_logprob_sum, model, batch)
            on_step()

    found: dict[Slot, float] = {}
    for name, sums in question.path.slopes(share, losses(), by_row=stacked).items():
        place = places[name]
        for row, value in enumerate(sums.tolist()):
            expert = row if name in stacked else place.expert
            slot = Slot(place.component, place.layer, expert)
            found[slot] = found.get(slot, 0.0) + value / len(question.items)
    return found


def single_swaps(
    question: Question,
    units: Sequence[Slot],
    *,
    on_step: Callable[[], None] = lambda: None,
) -> dict[Slot, float]:
    """What each unit changes when it alone is swapped into the host: the costly reference.

    One forward pass over the items per unit.
    """
    before = question.logprobs().mean()
    found = {}
    for unit in units:
        with question.taking([unit]):
            found[unit] = float(question.logprobs().mean() - before)
        on_step()
    return found


def difference_norms(question: Question, units: Sequence[Slot]) -> dict[Slot, float]:
    """Euclidean norm of donor minus host by unit. A baseline to be beaten: it asks no question."""
    family = question.host.checkpoint.family
    squares: dict[Slot, float] = {}
    for name in question.path.names:
        place = family.place(name)
        difference = question.path.difference(name).double().square()
        stacked = place.rule.stacked
        rows = difference.flatten(1).sum(1).tolist() if stacked else [float(difference.sum())]
        for row, value in enumerate(rows):
            slot = Slot(place.component, place.layer, row if stacked else place.expert)
            squares[slot] = squares.get(slot, 0.0) + value
    return {unit: value**0.5 for unit, value in question.sum_by(squares, units).items()}


def routing_frequencies(question: Question) -> dict[Slot, float]:
    """Share of tokens that the host sends to each expert on these items. A baseline."""
    host, num_tokens = question.host, 0
    found: dict[Slot, int] = {}

    def count(routing: Routing) -> None:
        chosen = routing.experts.flatten()
        for expert, times in enumerate(chosen.bincount(minlength=routing.logits.shape[1]).tolist()):
            slot = Slot("experts", routing.layer, expert)
            found[slot] = found.get(slot, 0) + times

    for batch in gold_batches(host.model, question.items, max_tokens=question.max_tokens):
        num_tokens += int(batch.mask.sum())
        with observed(host.model, host.checkpoint.family, count, batch.mask), torch.no_grad():
            gold_logprob_sum(host.model, batch)
    return {slot: times / num_tokens for slot, times in found.items()}


def random_values(units: Sequence[Slot], seed: int) -> dict[Slot, float]:
    """A random ranking, for comparison."""
    values = np.random.default_rng(seed).random(len(units))
    return dict(zip(units, values.tolist(), strict=True))


def ranked(values: dict[Slot, float]) -> list[Slot]:
    """Units by falling value; equal ones in the order in which they were given."""
    return sorted(values, key=lambda unit: -values[unit])
