"""Correction of a section's tests for their number: Holm, and for the appendix BH and max-T."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from moegraft.report.analysis import Block, Entry
from moegraft.stats import benjamini_hochberg, holm, max_t


def adjust(entries: Sequence[Entry], blocks: Sequence[Block], reference: str) -> int:
    """Write the adjusted p and simultaneous intervals of every test against `reference`.

    The family is all configurations under all conditions. Tests of equality and of equivalence
    are corrected apart, each over the family: they back different sentences.

    Returns:
        The number of tests.
    """
    tests = {
        (entry["condition"], entry["configuration"]): entry["against"][reference]
        for entry in entries
        if reference in entry["against"]
    }
    family = [test for test in tests.values() if test["p"] is not None]
    _write(family, holm, "p_holm")
    _write(family, benjamini_hochberg, "p_bh")
    _write([test["match"] for test in family], holm, "p_holm")
    _simultaneous(tests, blocks, reference)
    return len(family)


def simultaneous(
    contrasts: Sequence[tuple[Entry, Block, Float[np.ndarray, "_"], float]],
) -> None:
    """Write `simultaneous` and `p_max_t` into the entry of every contrast; one family.

    Args:
        contrasts: entry, its condition, its weights over the bootstrap's columns, and the
            smallest standard error that is believed (1/clusters for scores in [0, 1]).
    """
    usable = [contrast for contrast in contrasts if contrast[1].bootstrap is not None]
    if not usable:
        return
    draws, values = [], []
    for _, block, weights, _ in usable:
        assert block.bootstrap is not None
        draws.append(block.bootstrap.draws @ weights)
        values.append(float(block.bootstrap.means @ weights))
    floors = np.array([floor for *_, floor in usable])
    fewest = min(block.bootstrap.num_clusters for _, block, *_ in usable if block.bootstrap)
    found = max_t(
        np.array(values), np.column_stack(draws), floors=floors, degrees=max(1, fewest - 1)
    )
    for (entry, *_), interval, p in zip(usable, found.intervals, found.p_values, strict=True):
        entry["simultaneous"] = [interval.low, interval.high]
        entry["p_max_t"] = p


def _simultaneous(
    tests: Mapping[tuple[str, str], Entry], blocks: Sequence[Block], reference: str
) -> None:
    contrasts = []
    for block in (block for block in blocks if block.bootstrap is not None):
        for name in block.paired:
            test = tests.get((block.condition, name))
            if test is None or test["p"] is None or block.bootstrap is None:
                continue
            weights = block.bootstrap.contrast(
                block.paired.index(name), block.paired.index(reference)
            )
            contrasts.append((test, block, weights, 1 / block.bootstrap.num_clusters))
    simultaneous(contrasts)


def _write(
    tests: Sequence[dict[str, Any]], method: Callable[[Sequence[float]], list[float]], key: str
) -> None:
    for test, p in zip(tests, method([test["p"] for test in tests]), strict=True):
        test[key] = p
