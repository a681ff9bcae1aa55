"""The best composition of each condition: chosen on some items, confirmed on others."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from moegraft.report.analysis import ALPHA, REFERENCES, Block, Entry, Settings, pair, paired_tests
from moegraft.stats import ItemBootstrap, best_of, holm, split_halves

MIN_CONFIRMING = 20
"""Held-out items below which the run's own items are halved instead."""

Scores = Mapping[str, Float[np.ndarray, "item"]]


def find_winners(
    blocks: Sequence[Block], held_out: Mapping[str, Block], settings: Settings
) -> list[Entry]:
    """Choose and confirm the best composition of every condition that has both parents.

    Where `--confirm` evaluated it on items that the choice has not seen, those confirm; else
    items are halved by hash, passages whole, the first half chooses and the other confirms.
    "Exceeds" takes a Holm-adjusted p below 5 % over the conditions, where a condition's p is the
    larger one of the tests against the two parents (intersection-union, Berger 1982).

    Args:
        blocks: the run's conditions.
        held_out: the same conditions on all items, from `--confirm`, by name.
        settings: of the bootstrap.
    """
    entries = [
        entry
        for block in blocks
        if (entry := _winner(block, held_out.get(block.condition), settings)) is not None
    ]
    for entry, p in zip(entries, holm([entry["p"] for entry in entries]), strict=True):
        entry["p_holm"] = p
        entry["exceeds"] = p < ALPHA
    matching = [(test, entry) for entry in entries for test in [entry["against"][entry["parent"]]]]
    adjusted = holm([test["match"]["p"] for test, _ in matching])
    for (test, entry), p in zip(matching, adjusted, strict=True):
        test["match"]["p_holm"] = p
        entry["matches"] = p < ALPHA
    return entries


def _winner(block: Block, whole: Block | None, settings: Settings) -> Entry | None:
    transfers = [name for name in block.paired if name not in REFERENCES]
    if not transfers or not set(REFERENCES) <= set(block.paired) or len(block.items) < 2:
        return None
    matrix = np.column_stack([block.scores[name] for name in transfers])
    everything = best_of(matrix, seed=settings.seed, clusters=block.clusters)
    found = _confirm_on_rest(block, whole, transfers[everything.column])
    source = "held-out items"
    if found is None:
        source = "halves"
        first, second = split_halves(block.items, block.clusters)
        chosen = transfers[int(np.argmax(matrix[first].mean(axis=0)))]
        num_choosing, rest = len(first), second
        scores: Scores = {name: block.scores[name][rest] for name in (*REFERENCES, chosen)}
        clusters = None if block.clusters is None else [block.clusters[place] for place in rest]
    else:
        chosen, num_choosing = transfers[everything.column], len(block.items)
        scores, clusters = found
    entry: Entry = {
        "condition": block.condition,
        "configuration": chosen,
        "source": source,
        "num_choices": len(transfers),
        "num_choosing": num_choosing,
        "num_confirming": len(scores[chosen]),
        "score": float(scores[chosen].mean()),
        "best_on_all": transfers[everything.column],
        "score_on_all": everything.score,
        "optimism": everything.optimism,
        "corrected": {
            "value": everything.corrected.value,
            "interval": pair(everything.corrected),
        },
    }
    return entry | _tests(chosen, scores, clusters, settings)


def _confirm_on_rest(
    block: Block, whole: Block | None, chosen: str
) -> tuple[Scores, Sequence[str | None] | None] | None:
    """Scores on the items of `whole` that share neither item nor passage with `block`."""
    needed = (*REFERENCES, chosen)
    if whole is None or not set(needed) <= set(whole.paired):
        return None
    seen = {*block.items, *(name for name in block.clusters or () if name is not None)}
    clusters = whole.clusters or (None,) * len(whole.items)
    rest = [
        place
        for place, item in enumerate(whole.items)
        if item not in seen and clusters[place] not in seen
    ]
    if len(rest) < MIN_CONFIRMING:
        return None
    kept = [clusters[place] for place in rest] if whole.clusters else None
    return {name: whole.scores[name][rest] for name in needed}, kept


def _tests(
    chosen: str, scores: Scores, clusters: Sequence[str | None] | None, settings: Settings
) -> Entry:
    against: Entry = {}
    worst = 0.0
    for reference in REFERENCES:
        difference = scores[chosen] - scores[reference]
        bootstrap = ItemBootstrap.of(
            difference[:, None],
            seed=settings.seed,
            num_resamples=settings.num_resamples,
            clusters=clusters,
        )
        test = paired_tests(scores[chosen], scores[reference], clusters, settings)
        test |= {"difference": float(difference.mean())}
        test["interval"] = pair(bootstrap.estimate(np.ones(1)))
        against[reference] = test
        worst = max(worst, test["p"] if test["difference"] > 0 else 1.0)
    parent = max(REFERENCES, key=lambda name: float(scores[name].mean()))
    return {"against": against, "parent": parent, "p": worst}
