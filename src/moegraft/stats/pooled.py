"""Several conditions as one score: the weighted mean of their means, resampled by stratum."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from moegraft.stats.bootstrap import ItemBootstrap, resampled_totals
from moegraft.stats.inference import NUM_RESAMPLES
from moegraft.stats.paired import sign_flip_p


def pooled_bootstrap(
    scores: Sequence[Float[np.ndarray, "_ column"]],
    groups: Sequence[Sequence[str]],
    shares: Sequence[float],
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> ItemBootstrap:
    """One bootstrap of sum_c w_c mean_c, the weighted mean over conditions of each column's means.

    What a group holds is drawn together, also where it has items in several conditions (the same
    questions asked in two ways). Groups are drawn within strata, those that touch the same
    conditions (Davison & Hinkley 1997, section 3.2), so every condition is in every resample and
    keeps its weight however many items it has.

    Args:
        scores: one array a condition, the same columns in all.
        groups: for each condition, what each item shares with others: its passage, or itself.
        shares: the weights w_c of the conditions, which sum to 1.
        seed: of the resampling.
        num_resamples: how many.
    """
    sums, sizes = _sums(scores, groups)
    num_groups, num_conditions, num_columns = sums.shape
    flat = np.concatenate([sums.reshape(num_groups, -1), sizes], axis=1)
    rng = np.random.default_rng(seed)
    totals = np.zeros((num_resamples, flat.shape[1]))
    for kind in np.unique(sizes > 0, axis=0):
        stratum = flat[((sizes > 0) == kind).all(axis=1)]
        rows, counts = np.unique(stratum, axis=0, return_counts=True)
        totals += resampled_totals(rows, counts, rng, num_resamples)
    parts = totals[:, : num_conditions * num_columns].reshape(-1, num_conditions, num_columns)
    means = parts / totals[:, num_conditions * num_columns :, None]
    weights = np.asarray(shares, dtype=np.float64)
    return ItemBootstrap(
        means=weights @ np.array([one.mean(axis=0) for one in scores]),
        draws=np.einsum("c,rcn->rn", weights, means),
        num_items=sum(map(len, scores)),
        num_clusters=num_groups,
    )


def pooled_p(
    differences: Sequence[Float[np.ndarray, "_"]],
    groups: Sequence[Sequence[str]],
    shares: Sequence[float],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> float:
    """Two-sided p of a weighted mean difference: signs flip by group, in all conditions at once.

    The summands are D_g = sum_c w_c / n_c times the sum of the group's differences, see
    `sign_flip_p`.
    """
    sums, _ = _sums([one[:, None] for one in differences], groups)
    scale = np.array([w / len(one) for w, one in zip(shares, differences, strict=True)])
    return sign_flip_p(sums[:, :, 0] @ scale, num_resamples=num_resamples, seed=seed)


def _sums(
    scores: Sequence[Float[np.ndarray, "_ column"]], groups: Sequence[Sequence[str]]
) -> tuple[Float[np.ndarray, "group condition column"], Float[np.ndarray, "group condition"]]:
    """Summed scores, and number of items, of every group in every condition."""
    names = {name: place for place, name in enumerate(sorted({n for g in groups for n in g}))}
    sums = np.zeros((len(names), len(scores), scores[0].shape[1]))
    sizes = np.zeros((len(names), len(scores)))
    for place, (columns, own) in enumerate(zip(scores, groups, strict=True)):
        rows = np.array([names[name] for name in own])
        np.add.at(sums[:, place], rows, columns)
        np.add.at(sizes[:, place], rows, 1.0)
    return sums, sizes
