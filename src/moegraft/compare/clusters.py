"""How much less items say that share something: the design effect of their clusters."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from moegraft.stats import cluster_numbers


def design_effect(
    differences: Float[np.ndarray, "item"], clusters: Sequence[str | None] | None
) -> float:
    """Variance of the mean over clusters against that over as many independent items; at least 1.

    Kish 1965: items of one passage move together, so n of them say as much as n / effect.
    """
    if clusters is None:
        return 1.0
    centred = differences - differences.mean()
    alone = float(np.sum(centred**2))
    sums = np.bincount(cluster_numbers(clusters, len(differences)), weights=centred)
    return max(1.0, float(np.sum(sums**2)) / alone) if alone else 1.0


def largest_design_effect(clusters: Sequence[str | None] | None) -> float:
    """The design effect where the items of a cluster stand or fall together: sum n^2 / sum n."""
    if clusters is None or not clusters:
        return 1.0
    sizes = np.bincount(cluster_numbers(clusters, len(clusters)))
    return float(np.sum(sizes**2) / sizes.sum())
