"""Statistics of scored items: intervals, paired tests, multiplicity, factorial effects."""

from moegraft.stats.factorial import Effect, effect_weights, factorial_effects
from moegraft.stats.inference import (
    Estimate,
    Interval,
    ItemBootstrap,
    McNemar,
    NoiseFloor,
    ZTest,
    bootstrap_interval,
    holm,
    mcnemar,
    noise_floor,
    two_proportion_z,
    wilson_interval,
)

__all__ = [
    "Effect",
    "Estimate",
    "Interval",
    "ItemBootstrap",
    "McNemar",
    "NoiseFloor",
    "ZTest",
    "bootstrap_interval",
    "effect_weights",
    "factorial_effects",
    "holm",
    "mcnemar",
    "noise_floor",
    "two_proportion_z",
    "wilson_interval",
]
