"""The paired test of two columns of scores: McNemar's, or sign flips of items or clusters."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.stats import binom

from moegraft.stats.bootstrap import ItemBootstrap, cluster_numbers
from moegraft.stats.inference import NUM_RESAMPLES, Estimate, is_binary, mcnemar

Kind = Literal["mcnemar", "sign-flip"]

_MAX_ENUMERATED = 12
_MAX_REACH, _MAX_WORK = 10**6, 2 * 10**8
"""Largest sum of whole numbers, and of additions, for which the distribution is worked out."""
_CHUNK = 2**18


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Two-sided test that a and b score equally, with the paired interval of a minus b."""

    kind: Kind
    estimate: Estimate
    """Mean of a minus mean of b, with the percentile interval of the paired bootstrap."""
    p_value: float
    num_items: int
    num_clusters: int
    """As many as items where no two items share a cluster."""
    discordant: tuple[int, int] | None
    """Items that only a, and that only b, solves; None where scores are not 0/1."""


def paired_test(
    a: Float[np.ndarray, "item"],
    b: Float[np.ndarray, "item"],
    *,
    clusters: Sequence[str | None] | None = None,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> PairedTest:
    """Test a against b on the same items.

    Exact McNemar where all scores are 0/1 and no cluster has two items; else the sign-flip test
    of the clusters' summed differences, see `sign_flip_p`. The interval is the paired bootstrap's
    over clusters.

    Args:
        a: scores of one configuration.
        b: scores of the other one, item by item.
        clusters: what each item shares with others (a passage); None for items that stand alone.
        level: of the interval.
        num_resamples: of the bootstrap, and of sign flips that are too many to enumerate.
        seed: of both.
    """
    bootstrap = ItemBootstrap.of(
        (a - b)[:, None], seed=seed, num_resamples=num_resamples, clusters=clusters
    )
    kind, p = paired_p(a, b, clusters=clusters, num_resamples=num_resamples, seed=seed)
    binary = is_binary(a) and is_binary(b)
    return PairedTest(
        kind=kind,
        estimate=bootstrap.estimate(np.ones(1), level),
        p_value=p,
        num_items=len(a),
        num_clusters=bootstrap.num_clusters,
        discordant=(int(np.sum(a > b)), int(np.sum(a < b))) if binary else None,
    )


def paired_p(
    a: Float[np.ndarray, "item"],
    b: Float[np.ndarray, "item"],
    *,
    clusters: Sequence[str | None] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[Kind, float]:
    """Which test `paired_test` takes, and its two-sided p, without the interval."""
    numbers = cluster_numbers(clusters, len(a))
    alone = len(a) == int(numbers.max(initial=-1)) + 1
    if alone and is_binary(a) and is_binary(b):
        return "mcnemar", mcnemar(a, b).p
    sums = np.bincount(numbers, weights=a - b)
    return "sign-flip", sign_flip_p(sums, num_resamples=num_resamples, seed=seed)


def sign_flip_p(
    sums: Float[np.ndarray, "cluster"], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> float:
    """Two-sided p that differences are as likely with the opposite sign: P(|sum s_c D_c| >= |sum|).

    Fisher 1935 (Design of Experiments, section 21), signs flipped by cluster. Exact for whole
    numbers (0/1 scores; it is McNemar's test where no cluster has two items) unless they are very
    large, and for up to 12 clusters that differ; else (1 + hits) / (1 + resamples), which keeps
    the level too.
    """
    sizes = np.abs(sums[np.abs(sums) > 1e-12])
    if not len(sizes):
        return 1.0
    observed, reach = float(np.abs(sums.sum())), float(sizes.sum())
    whole = bool(np.all(np.abs(sizes - np.rint(sizes)) < 1e-9))
    if whole and reach <= _MAX_REACH and reach * len(sizes) <= _MAX_WORK:
        return _exact(np.rint(sizes).astype(np.int64), observed)
    threshold = observed - 1e-9 * float(sizes.sum())
    if len(sizes) <= _MAX_ENUMERATED:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(sizes))))
        return float(np.mean(np.abs(signs @ sizes) >= threshold))
    rng = np.random.default_rng(seed)
    hits, step = 0, max(1, _CHUNK // len(sizes))
    for start in range(0, num_resamples, step):
        rows = min(step, num_resamples - start)
        bits = np.frombuffer(rng.bytes(rows * -(-len(sizes) // 8)), dtype=np.uint8)
        flips = np.unpackbits(bits.reshape(rows, -1), axis=1, count=len(sizes))
        flipped = sizes.sum() - 2 * (flips.astype(np.float64) @ sizes)
        hits += int(np.count_nonzero(np.abs(flipped) >= threshold))
    return (1 + hits) / (1 + num_resamples)


def _exact(sizes: np.ndarray, observed: float) -> float:
    """Distribution of a sum of whole numbers with random signs: one binomial per distinct size."""
    mass = np.ones(1)
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        chances = binom.pmf(np.arange(count + 1), count, 0.5)
        if len(mass) == 1:
            wider = np.zeros(2 * int(count * size) + 1)
            wider[:: 2 * int(size)] = chances * mass
        else:
            wider = np.zeros(len(mass) + 2 * int(count * size))
            for flips, chance in enumerate(chances):
                wider[2 * int(size) * flips :][: len(mass)] += chance * mass
        mass = wider
    reach = (len(mass) - 1) // 2
    sums = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(mass[sums >= observed - 0.5].sum()))
