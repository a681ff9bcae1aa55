"""Which experts of a layer serve every domain: ranked, with their stability and their reach."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from moegraft.errors import RecipeError
from moegraft.xpert.counts import RoutingTable
from moegraft.xpert.scores import SCORES, Score, best_experts, check_score, expert_scores
from moegraft.xpert.selection import name_expert

NUM_BEST = 4
"""K of the last script that the method's authors published."""
_RESAMPLES_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Identification:
    """The chosen experts of every layer, and how far the choice can be trusted.

    Experts are numbered as in the checkpoint; numbers from `num_experts` on are shared experts.
    """

    table: RoutingTable
    score: Score
    use: Float[np.ndarray, "domain layer expert"]
    """What was scored, shared experts included: frequency, or mass per token for `gate_mass`."""
    scores: Float[np.ndarray, "layer expert"]
    chosen: Int[np.ndarray, "layer best"]
    """Best first."""
    stability: Float[np.ndarray, "layer expert"] | None
    """Share of bootstrap samples of the text windows in which the expert is chosen."""
    without_domain: Float[np.ndarray, "layer expert"] | None
    """Share of the selections from all domains but one in which the expert is chosen."""

    @property
    def frequency(self) -> Float[np.ndarray, "domain layer expert"]:
        """Share of each domain's tokens, 1 for shared experts."""
        return _with_shared(self.table.frequency, self.table.num_shared)

    @property
    def coverage(self) -> Float[np.ndarray, "domain layer"]:
        """Share of a domain's choices of routed experts that fall on chosen ones."""
        routed = self.chosen[None] < self.table.num_experts
        taken = np.take_along_axis(self.frequency, self.chosen[None], axis=2)
        return (taken * routed).sum(axis=2) / self.table.top_k

    @property
    def domains_above_chance(self) -> Float[np.ndarray, "layer expert"]:
        """Share of domains that use an expert at least as often as routing at random would."""
        chance = self.table.top_k / self.table.num_experts
        return (self.frequency >= chance).mean(axis=0)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: what was asked, the choice, and the table behind it."""
        table = self.table
        return {
            "schema": 1,
            "source": table.source,
            "fingerprint": table.fingerprint,
            "score": self.score,
            "num_best": self.chosen.shape[1],
            "num_experts": table.num_experts,
            "num_shared": table.num_shared,
            "top_k": table.top_k,
            "domains": list(table.domains),
            "num_tokens": table.num_tokens.tolist(),
            "num_windows": [len(own.num_tokens) for own in table.windows] or None,
            "chance_frequency": table.top_k / table.num_experts,
            "layers": [self._layer(place) for place in range(len(table.layers))],
            "frequency": self.frequency.tolist(),
            "scores": self.scores.tolist(),
        }

    def _layer(self, place: int) -> dict[str, Any]:
        table, best = self.table, self.chosen[place]
        others = {}
        for score in SCORES:
            use = _use(table, score)
            if score != self.score and use is not None:
                ranking = best_experts(expert_scores(use[:, place], score), len(best))
                others[score] = len(set(ranking.tolist()) & set(best.tolist()))
        covered = dict(zip(table.domains, self.coverage[:, place].tolist(), strict=True))
        return {
            "layer": table.layers[place],
            "chosen": [self._expert(place, int(expert)) for expert in best],
            "coverage": covered,
            "in_common_with": others,
        }

    def _expert(self, place: int, expert: int) -> dict[str, Any]:
        table, own = self.table, self.frequency[:, place, expert]
        lowest = int(own.argmin())
        return {
            "expert": name_expert(expert, table.num_experts),
            "score": float(self.scores[place, expert]),
            "mean": float(own.mean()),
            "deviation": float(np.abs(own - own.mean()).mean()),
            "frequency": dict(zip(table.domains, own.tolist(), strict=True)),
            "lowest_domain": table.domains[lowest],
            "effective_domains": _effective_number(own),
            "domains_above_chance": float(self.domains_above_chance[place, expert]),
            "stability": _entry(self.stability, place, expert),
            "without_domain": _entry(self.without_domain, place, expert),
        }


def identify_experts(
    table: RoutingTable,
    *,
    num_best: int = NUM_BEST,
    score: Score = "a_minus_c",
    num_resamples: int = 1000,
    seed: int = 0,
) -> Identification:
    """Rank the experts of every layer by how they serve all domains, and take the best.

    Shared experts serve every token (frequency 1 in all domains), so they come first. Domains
    have equal weight whatever their length.

    Args:
        table: the counts.
        num_best: experts to choose per layer, K in the paper.
        score: see `scores.expert_scores`.
        num_resamples: of the bootstrap over windows, where windows were counted apart. Windows of
            one document are not independent, so the stability is an upper bound.
        seed: of the bootstrap.

    Raises:
        RecipeError: fewer experts than `num_best`, or no routing mass in the counts.
    """
    check_score(score)
    num_all = table.num_experts + table.num_shared
    if not 1 <= num_best <= num_all:
        raise RecipeError(
            f"--top {num_best}: {table.source} has {num_all} experts per layer; "
            f"expected a number from 1 to {num_all}"
        )
    use = _use(table, score)
    if use is None:
        raise RecipeError(
            "score gate_mass: the counts hold no routing mass; measure it with a checkpoint, or "
            "choose another score"
        )
    scores = expert_scores(use, score)
    return Identification(
        table=table,
        score=score,
        use=use,
        scores=scores,
        chosen=best_experts(scores, num_best),
        stability=_stability(table, num_best, score, num_resamples, seed),
        without_domain=_without_domain(use, num_best, score),
    )


def _use(table: RoutingTable, score: str) -> Float[np.ndarray, "domain layer expert"] | None:
    if score != "gate_mass":
        return _with_shared(table.frequency, table.num_shared)
    if table.mass is None:
        return None
    return _with_shared(table.mass / table.num_tokens[:, None, None], table.num_shared)


def _with_shared(
    use: Float[np.ndarray, "*axes expert"], num_shared: int
) -> Float[np.ndarray, "*axes all"]:
    return np.concatenate([use, np.ones((*use.shape[:-1], num_shared))], axis=-1)


def _stability(
    table: RoutingTable, num_best: int, score: Score, num_resamples: int, seed: int
) -> Float[np.ndarray, "layer expert"] | None:
    """How often each expert is chosen when each domain's windows are drawn again."""
    if not table.windows or num_resamples < 1:
        return None
    rng = np.random.default_rng(seed)
    num_layers, num_all = len(table.layers), table.num_experts + table.num_shared
    times = np.zeros((num_layers, num_all))
    for start in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        size = min(_RESAMPLES_AT_ONCE, num_resamples - start)
        drawn = [_draw(own, score, size, rng) for own in table.windows]
        use = _with_shared(np.stack(drawn), table.num_shared)
        best = best_experts(expert_scores(use, score), num_best)
        for layer in range(num_layers):
            times[layer] += np.bincount(best[:, layer].ravel(), minlength=num_all)
    return times / num_resamples


def _draw(
    own: Any, score: Score, size: int, rng: np.random.Generator
) -> Float[np.ndarray, "sample layer expert"]:
    """Use of each expert in `size` samples of a domain's windows, with replacement."""
    num_windows = len(own.num_tokens)
    weights = rng.multinomial(num_windows, np.full(num_windows, 1 / num_windows), size=size)
    values = (own.mass if score == "gate_mass" else own.counts).reshape(num_windows, -1)
    totals = (weights @ values.astype(float)) / (weights @ own.num_tokens)[:, None]
    return totals.reshape(size, *own.counts.shape[1:])


def _without_domain(
    use: Float[np.ndarray, "domain layer expert"], num_best: int, score: Score
) -> Float[np.ndarray, "layer expert"] | None:
    """How often each expert is chosen when one domain is left out."""
    if len(use) < 2:
        return None
    times = np.zeros(use.shape[1:])
    for domain in range(len(use)):
        best = best_experts(expert_scores(np.delete(use, domain, axis=0), score), num_best)
        np.put_along_axis(times, best, np.take_along_axis(times, best, 1) + 1, axis=1)
    return times / len(use)


def _effective_number(use: Float[np.ndarray, "domain"]) -> float:
    """exp of the entropy of the use over domains: 1 = serves one domain, D = all alike."""
    if not use.sum():
        return 0.0
    shares = use[use > 0] / use.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _entry(
    values: Float[np.ndarray, "layer expert"] | None, place: int, expert: int
) -> float | None:
    return None if values is None else float(values[place, expert])
