"""Statistics of scored items: intervals, paired tests, margins, multiplicity, effects."""

from moegraft.stats.bootstrap import ItemBootstrap, cluster_numbers
from moegraft.stats.equivalence import (
    Equivalence,
    NonInferiority,
    equivalence,
    equivalence_by_error,
    noninferiority,
)
from moegraft.stats.factorial import (
    Effect,
    effect_contrasts,
    effect_weights,
    factorial_effects,
)
from moegraft.stats.inference import (
    Estimate,
    Interval,
    McNemar,
    NoiseFloor,
    ZTest,
    bootstrap_interval,
    mcnemar,
    noise_floor,
    two_proportion_z,
    wilson_interval,
)
from moegraft.stats.logit import ConditionalLogit, conditional_logit
from moegraft.stats.multiplicity import MaxT, benjamini_hochberg, holm, max_t
from moegraft.stats.paired import PairedTest, paired_p, paired_test, sign_flip_p
from moegraft.stats.pooled import pooled_bootstrap, pooled_p
from moegraft.stats.power import (
    detectable_by_error,
    items_for_margin,
    items_needed,
    minimum_detectable,
    resolvable_margin,
)
from moegraft.stats.seeds import SeedTest, seed_mean, seed_test
from moegraft.stats.winner import BestOf, best_of, split_halves

__all__ = [
    "BestOf",
    "ConditionalLogit",
    "Effect",
    "Equivalence",
    "Estimate",
    "Interval",
    "ItemBootstrap",
    "MaxT",
    "McNemar",
    "NoiseFloor",
    "NonInferiority",
    "PairedTest",
    "SeedTest",
    "ZTest",
    "benjamini_hochberg",
    "best_of",
    "bootstrap_interval",
    "cluster_numbers",
    "conditional_logit",
    "detectable_by_error",
    "effect_contrasts",
    "effect_weights",
    "equivalence",
    "equivalence_by_error",
    "factorial_effects",
    "holm",
    "items_for_margin",
    "items_needed",
    "max_t",
    "mcnemar",
    "minimum_detectable",
    "noise_floor",
    "noninferiority",
    "paired_p",
    "paired_test",
    "pooled_bootstrap",
    "pooled_p",
    "resolvable_margin",
    "seed_mean",
    "seed_test",
    "sign_flip_p",
    "split_halves",
    "two_proportion_z",
    "wilson_interval",
]
