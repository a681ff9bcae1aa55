"""Search for a composition beyond the paper's eight, led by attribution, under an item budget."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from moegraft.evals.condition import Condition, Item
from moegraft.sweep.space import Composition, Space, prefixes

NUM_FINALISTS = 5
PASSES = 50
"""Compositions that the gold share of a budget pays for, attribution included."""
GOLD_SHARE = 0.6

_GRADIENT_COST = 3
_POINTS = 4
_PREFIXES = 8
_NUM_PRESETS = 2

Scores = Float[np.ndarray, " item"]


@dataclass
class Arena:
    """Compositions of one host and donor on fixed items, counted against a budget.

    Evaluating one item once costs 1, however little of the model has to run; a gradient costs 3.
    """

    question: Any
    """A `sweep.attribution.Question` of the gold items."""
    condition: Condition
    space: Space
    score_items: Sequence[Item]
    """Items on which finalists are scored; the gold items are among them."""
    budget: int
    seed: int = 0
    on_spent: Callable[[int], None] = lambda spent: None
    spent: int = 0
    golds: dict[Composition, Scores] = field(default_factory=dict)
    """What is known, by composition."""
    finals: dict[Composition, float] = field(default_factory=dict)
    """Mean score on the score items of those that were compared by it."""

    def __post_init__(self) -> None:
        from moegraft.evals.rescore import Rescorer

        self._rescorer = Rescorer(
            self.question.host, max_tokens=self.question.max_tokens, seed=self.seed
        )
        self._base: Composition | None = None

    def affords(self, num_items: int, reserved: int = 0) -> bool:
        """Whether the budget has room for so many more item evaluations."""
        return self.spent + num_items + reserved <= self.budget

    def pay(self, num_items: int) -> None:
        """Count item evaluations."""
        self.spent += num_items
        self.on_spent(self.spent)

    def gold(self, composition: Composition) -> Scores:
        """Log-probability of each gold answer; computed, and paid for, once."""
        if composition not in self.golds:
            layer = 0
            if self._base is not None:
                layer = self.space.first_layer(self._base, composition)
            with self.taking(composition), self._rescorer.starting_at(layer):
                self.golds[composition] = self._measure()
            self.pay(len(self.question.items))
        return self.golds[composition]

    def stand_on(self, composition: Composition) -> None:
        """Let later compositions reuse the layers that they share with this one."""
        with self.taking(composition), self._rescorer.recording():
            found = self._measure()
        if composition not in self.golds:
            self.golds[composition] = found
            self.pay(len(self.question.items))
        self._base = composition

    def _measure(self) -> Scores:
        from moegraft.evals.gold import gold_pairs

        pairs = gold_pairs(self.question.items)
        found = dict(self._rescorer.likelihoods(pairs))
        return np.array([found[i].logprob for i in range(len(pairs))], dtype=np.float64)

    def taking(self, composition: Composition) -> Any:
        """A block with a composition swapped in."""
        slots = self.space.slots(composition)
        return self.question.taking(slots) if slots else nullcontext()

    def scores(self, items: Sequence[Item]) -> Scores:
        """Scores under whatever is swapped in; costs one evaluation per item."""
        from moegraft.evals.judge import score_items
        from moegraft.evals.scorer import Scorer

        host = self.question.host
        scorer = Scorer(host, max_tokens=self.question.max_tokens, seed=self.seed)
        rows = {row["item"]: row for row in score_items(scorer, self.condition, items)}
        return np.array([rows[item.hash]["score"] for item in items], dtype=np.float64)

    def best_by_score(self, compositions: Sequence[Composition]) -> Composition:
        """The highest mean score on the score items; of equals, the higher gold probability."""
        for one in compositions:
            with self.taking(one):
                self.finals[one] = float(self.scores(self.score_items).mean())
            self.pay(len(self.score_items))
        return max(compositions, key=lambda one: (self.finals[one], float(self.gold(one).mean())))

    def finalists(self) -> list[Composition]:
        """What is compared by score: the highest gold log-probabilities, parents left out.

        Two places are kept for the paper's eight, for where the gold answer misleads.
        """
        known = [c for c in self.golds if c and c != self.space.everything]
        ranked = sorted(known, key=lambda c: -float(self.golds[c].mean()))
        presets = [c for c in ranked if c in self.space.presets()][:_NUM_PRESETS]
        others = [c for c in ranked if c not in presets]
        return [*others[: NUM_FINALISTS - len(presets)], *presets]

    @property
    def reserved(self) -> int:
        """What scoring the finalists will cost."""
        return NUM_FINALISTS * len(self.score_items)


def guided_search(
    arena: Arena, *, on_attributed: Callable[[Sequence[float]], None] = lambda values: None
) -> Composition:
    """Attribution, then the compositions that it suggests, then flips; the best by score.

    1. Integrated gradients of the gold log-probability say what each unit adds.
    2. The paper's eight, everything, and the best units in growing number are measured.
    3. From the best one, flips are tried in the order of what attribution promises (one unit, a
       component, a group of layers), and kept when the paired gain exceeds its standard error,
       until none does or the budget is spent.
    4. The finalists are compared by score.
    """
    from moegraft.sweep.attribution import integrated_gradients

    space, num_items = arena.space, len(arena.question.items)
    values = space.values(integrated_gradients(arena.question, num_points=_POINTS))
    arena.pay(_GRADIENT_COST * _POINTS * num_items)
    on_attributed(values)
    arena.stand_on(frozenset())
    starts = [*space.presets(), space.everything, *prefixes(values, _PREFIXES)]
    # High layers first: they reuse most of what the host's pass has left.
    for one in sorted(dict.fromkeys(starts), key=lambda c: -space.first_layer(frozenset(), c)):
        if not arena.affords(num_items, arena.reserved):
            break
        arena.gold(one)
    best = max(arena.golds, key=lambda c: float(arena.golds[c].mean()))
    _climb(arena, best, values)
    return arena.best_by_score(arena.finalists())


def random_search(arena: Arena) -> Composition:
    """Units drawn at random, with a chance that is drawn too, until the same budget is spent."""
    rng = np.random.default_rng(arena.seed)
    num_units, num_items = len(arena.space.units), len(arena.question.items)
    known = 2 ** min(num_units, 30)
    while arena.affords(num_items, arena.reserved) and len(arena.golds) < known:
        drawn = rng.random(num_units) < rng.random()
        arena.gold(frozenset(np.flatnonzero(drawn).tolist()))
    return arena.best_by_score(arena.finalists())


def _climb(arena: Arena, start: Composition, values: Sequence[float]) -> None:
    """Flip units while it helps and the budget lasts."""
    here, num_items = start, len(arena.question.items)
    while True:
        arena.stand_on(here)
        better = None
        for move in sorted(arena.space.neighbours(here), key=lambda m: -_promise(here, m, values)):
            if move not in arena.golds and not arena.affords(num_items, arena.reserved):
                return
            if _exceeds(arena.gold(move), arena.golds[here]):
                better = move
                break
        if better is None:
            return
        here = better


def _promise(here: Composition, move: Composition, values: Sequence[float]) -> float:
    """What attribution says that a move gains."""
    return sum(values[u] for u in move - here) - sum(values[u] for u in here - move)


def _exceeds(new: Scores, old: Scores) -> bool:
    """Whether the paired gain is more than its standard error."""
    gain = new - old
    return float(gain.mean()) > float(gain.std(ddof=1)) / len(gain) ** 0.5
