"""Scores of an expert from how often each domain uses it, and the best experts of a layer."""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from moegraft.errors import RecipeError

Score = Literal["a_minus_c", "mean", "min", "a_minus_std", "gate_mass"]
SCORES: tuple[Score, ...] = get_args(Score)


def expert_scores(
    use: Float[np.ndarray, "domain *axes"], score: Score = "a_minus_c"
) -> Float[np.ndarray, "*axes"]:
    """One number per expert, larger for experts that serve all domains; domains count alike.

    With A the mean over domains: `a_minus_c` is A - C, C the mean absolute deviation from A (the
    method's score; the paper's predecessor calls C a "first central moment", which read literally
    is always 0); `a_minus_std` takes the standard deviation (over domains, not of a sample)
    instead; `min` is the use by the domain that uses the expert least; `mean` and `gate_mass` are
    A itself.

    Args:
        use: routing frequency of each expert by domain; for `gate_mass` its routing mass.
        score: which.
    """
    mean = use.mean(axis=0)
    if score == "a_minus_c":
        return mean - np.abs(use - mean).mean(axis=0)
    if score == "a_minus_std":
        return mean - use.std(axis=0)
    if score == "min":
        return use.min(axis=0)
    return mean


def best_experts(
    scores: Float[np.ndarray, "*axes expert"], num_best: int
) -> Int[np.ndarray, "*axes best"]:
    """The `num_best` experts with the largest scores, best first; ties go to the lower number."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :num_best]


def check_score(score: str) -> Score:
    """The score of that name. Raises RecipeError if it does not exist."""
    for known in SCORES:
        if score == known:
            return known
    raise RecipeError(f"score {score!r}: expected one of {', '.join(SCORES)}")
