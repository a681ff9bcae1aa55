"""Scored items of several models, paired: one array item x model per condition, or a refusal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from moegraft.errors import ResultsError

Row = dict[str, Any]
Cells = dict[str, dict[str, Row]]
"""condition -> item -> row with `score`, `prompts` (kind -> value) and where known `cluster`."""

Prompts = Literal["equal", "unknown", "own", "different"]

_KINDS = ("text", "ids", "given")
"""Ways to know a prompt, the safest to compare first: its text, its token ids, a table's column."""


@dataclass(frozen=True, slots=True)
class Results:
    """The scored items of one model."""

    model: str
    """What to call it."""
    source: str
    """Where it was read from."""
    cells: Cells
    metrics: Mapping[str, str] = field(default_factory=dict)
    """By condition: the metric that became the score, where the source has several."""
    notes: tuple[str, ...] = ()
    """Sentences that a reader of a comparison should know."""
    own_prompts: bool = False
    """Asked the same questions as the other models of its source, but each in its own chat
    template and tokenizer."""


@dataclass(frozen=True, slots=True)
class Paired:
    """One condition on the items that all models answered."""

    condition: str
    models: tuple[str, ...]
    items: tuple[str, ...]
    """Sorted."""
    scores: Float[np.ndarray, "item model"]
    clusters: tuple[str | None, ...] | None
    """What each item shares with others; None where no source says."""
    prompts: Prompts
    left_out: Mapping[str, int]
    """Items of a model that others lack, where there are such."""
    metric: str | None = None


@dataclass(frozen=True, slots=True)
class Pairing:
    """All conditions that all models have."""

    models: tuple[str, ...]
    sources: Mapping[str, str]
    conditions: tuple[Paired, ...]
    notes: tuple[str, ...]


def pair(
    results: Sequence[Results], *, different_prompts: bool = False, same_items: bool = False
) -> Pairing:
    """Pair the items of several models.

    Args:
        results: of at least two models.
        different_prompts: compare although prompts of one item differ (each model's own template).
        same_items: refuse when one model has items that another one lacks, instead of comparing
            on those that all have.

    Raises:
        ResultsError: two models of one name, no condition or item in common, prompts or metrics
            that differ.
    """
    names = [one.model for one in results]
    if len(names) < 2:
        raise ResultsError(f"only one model ({', '.join(names)}); a comparison needs two or more")
    for name in names:
        if names.count(name) > 1:
            raise ResultsError(
                f"two models are called {name!r}; write NAME=PATH to tell them apart"
            )
    shared = [c for c in results[0].cells if all(c in one.cells for one in results)]
    if not shared:
        has = "; ".join(f"{one.model}: {', '.join(one.cells)}" for one in results)
        raise ResultsError(f"no condition in common ({has}); --rename OLD=NEW gives one its name")
    notes = [note for one in results for note in one.notes]
    for one in results:
        lost = [condition for condition in one.cells if condition not in shared]
        if lost:
            notes.append(f"{', '.join(lost)} of {one.model} left out: not every model has it")
    return Pairing(
        tuple(names),
        {one.model: one.source for one in results},
        tuple(_pair(name, results, different_prompts, same_items) for name in shared),
        tuple(dict.fromkeys(notes)),
    )


def _pair(
    condition: str, results: Sequence[Results], different_prompts: bool, same_items: bool
) -> Paired:
    cells = {one.model: one.cells[condition] for one in results}
    items = sorted(set.intersection(*(set(rows) for rows in cells.values())))
    if not items:
        examples = ", ".join(f"{name}: {next(iter(rows), '-')}" for name, rows in cells.items())
        raise ResultsError(f"{condition}: the models share no item (such as {examples})")
    left_out = {n: len(rows) - len(items) for n, rows in cells.items() if len(rows) > len(items)}
    if left_out and same_items:
        name, count = next(iter(left_out.items()))
        raise ResultsError(
            f"{condition}: {count} of {len(cells[name])} items of {name} are missing elsewhere; "
            "both need the same items"
        )
    known = [_prompts_agree([rows[item] for rows in cells.values()]) for item in items]
    own = all(one.own_prompts for one in results)
    if False in known and not (different_prompts or own):
        raise ResultsError(
            f"{condition}: item {items[known.index(False)]} was asked under different prompts "
            f"({known.count(False)} of {len(items)} items); only equal prompts compare models. "
            "If each was meant to be asked in its own way, pass --different-prompts"
        )
    scores = [[float(rows[item]["score"]) for rows in cells.values()] for item in items]
    return Paired(
        condition=condition,
        models=tuple(cells),
        items=tuple(items),
        scores=np.array(scores, dtype=np.float64),
        clusters=_clusters(list(cells.values()), items),
        prompts=_prompts(known, own),
        left_out=left_out,
        metric=_metric(condition, results),
    )


def _prompts_agree(rows: Sequence[Row]) -> bool | None:
    """Whether one item was asked alike everywhere; None where that is not known."""
    first, *others = (row.get("prompts") or {} for row in rows)
    found: bool | None = True
    for other in others:
        kind = next((k for k in _KINDS if first.get(k) and other.get(k)), None)
        if kind is None:
            found = None
        elif first[kind] != other[kind]:
            return False
    return found


def _prompts(known: Sequence[bool | None], own: bool) -> Prompts:
    if False in known:
        return "own" if own else "different"
    return "unknown" if None in known else "equal"


def _clusters(
    cells: Sequence[Mapping[str, Row]], items: Sequence[str]
) -> tuple[str | None, ...] | None:
    for rows in cells:
        found = tuple(rows[item].get("cluster") for item in items)
        if any(cluster is not None for cluster in found):
            return found
    return None


def _metric(condition: str, results: Sequence[Results]) -> str | None:
    named = {one.model: one.metrics[condition] for one in results if one.metrics.get(condition)}
    if len(set(named.values())) > 1:
        said = ", ".join(f"{name}: {metric}" for name, metric in named.items())
        raise ResultsError(f"{condition}: scores are different metrics ({said}); pass --metric")
    return next(iter(named.values()), None)
