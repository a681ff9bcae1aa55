"""Hot-swap the units that an attribution ranks first, on items it has not seen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from moegraft.evals.condition import Condition, Item
from moegraft.evals.judge import score_items
from moegraft.stats import ItemBootstrap, holm
from moegraft.stats.paired import paired_test
from moegraft.sweep.attribution import Question
from moegraft.transfer.scope import Slot

LEVEL = 0.95

Scores = Float[np.ndarray, " item"]


@dataclass(frozen=True)
class Confirmation:
    """Units are swapped into the host one by one, then together, and compared with the host.

    The single units are one family of tests (Holm). All of them together, and the whole donor,
    stand outside: each is one comparison that was planned before a result was seen.
    """

    question: Question
    condition: Condition
    items: Sequence[Item]
    """None of the items that the ranking has seen."""
    seed: int = 0

    def run(
        self, units: Sequence[Slot], *, on_step: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Measure and test.

        Args:
            units: at least one.
            on_step: called `len(units) + 3` times.

        Returns:
            JSON-ready. Effects on gold log-probability in nats per item, with paired intervals;
            and the scores of host, all units together, and donor.
        """
        host = self.question.logprobs(self.items)
        host_scores = self._scores()
        on_step()
        singles = []
        for unit in units:
            with self.question.taking([unit]):
                singles.append(self._compare(self.question.logprobs(self.items), host))
            on_step()
        adjusted = holm([test["p"] for test in singles])
        for test, p_value in zip(singles, adjusted, strict=True):
            test["p_holm"] = p_value
            test["confirmed"] = test["effect"] > 0 and p_value < 1 - LEVEL
        with self.question.taking(units):
            together, together_scores = self.question.logprobs(self.items), self._scores()
        on_step()
        with self.question.taking_all():
            donor, donor_scores = self.question.logprobs(self.items), self._scores()
        on_step()
        return {
            "num_items": len(self.items),
            "level": LEVEL,
            "units": [{**u._asdict(), **t} for u, t in zip(units, singles, strict=True)],
            "together": self._compare(together, host),
            "donor": self._compare(donor, host),
            "share_kept": self._share_kept(host, together, donor),
            "scores": {
                "metric": self.condition.primary,
                "host": float(host_scores.mean()),
                "together": self._compare(together_scores, host_scores),
                "donor": self._compare(donor_scores, host_scores),
            },
        }

    def _scores(self) -> Scores:
        from moegraft.evals.scorer import Scorer

        scorer = Scorer(self.question.host, max_tokens=self.question.max_tokens, seed=self.seed)
        rows = {row["item"]: row for row in score_items(scorer, self.condition, self.items)}
        return np.array([rows[item.hash]["score"] for item in self.items], dtype=np.float64)

    def _compare(self, new: Scores, host: Scores) -> dict[str, Any]:
        test = paired_test(new, host, clusters=self._clusters(), level=LEVEL, seed=self.seed)
        interval = test.estimate.interval
        return {
            "mean": float(new.mean()),
            "effect": test.estimate.value,
            "interval": [interval.low, interval.high],
            "p": test.p_value,
            "test": test.kind,
        }

    def _share_kept(self, host: Scores, together: Scores, donor: Scores) -> dict[str, Any] | None:
        """(together - host) / (donor - host); None where the donor is not shown to be better."""
        columns = np.stack([host, together, donor], axis=1)
        bootstrap = ItemBootstrap.of(columns, seed=self.seed, clusters=self._clusters())
        share = bootstrap.gap_recovered(1, 0, 2, LEVEL)
        if share is None or donor.mean() <= host.mean():
            return None
        return {"value": share.value, "interval": [share.interval.low, share.interval.high]}

    def _clusters(self) -> list[str | None]:
        return [item.cluster for item in self.items]
