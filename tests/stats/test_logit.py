import numpy as np
import pytest
from statsmodels.discrete.conditional_models import ConditionalLogit

from moegraft.stats import conditional_logit

DESIGN = np.array([[a, b, a * b] for a in (-0.5, 0.5) for b in (-0.5, 0.5)])


def answers(num_items, coefficients, seed=0):
    rng = np.random.default_rng(seed)
    ability = 1.5 * rng.normal(size=(num_items, 1))
    chance = 1 / (1 + np.exp(-(ability + DESIGN @ np.array(coefficients))))
    return (rng.random(chance.shape) < chance) * 1.0


def test_the_fit_is_that_of_statsmodels():
    scores = answers(150, (0.5, -0.3, 0.4))
    found = conditional_logit(scores, DESIGN)
    informative = scores[scores.sum(axis=1) % 4 > 0]
    groups = np.repeat(np.arange(len(informative)), 4)
    exog = np.tile(DESIGN, (len(informative), 1))
    theirs = ConditionalLogit(informative.ravel(), exog, groups=groups).fit(disp=0)
    assert found is not None
    assert found.coefficients == pytest.approx(theirs.params, abs=1e-3)  # its optimiser stops there
    assert found.errors == pytest.approx(theirs.bse, rel=1e-3)
    assert found.p_values == pytest.approx(theirs.pvalues, abs=1e-3)
    assert found.num_informative == len(informative)


def test_planted_log_odds_are_recovered():
    found = conditional_logit(answers(6000, (0.8, -0.4, 0.5)), DESIGN)
    assert found is not None
    assert np.all(np.abs(found.coefficients - [0.8, -0.4, 0.5]) < 3 * found.errors)
    assert np.all(found.errors < 0.15)


def test_copies_of_items_do_not_shrink_clustered_errors():
    scores = answers(300, (0.5, 0.0, 0.0))
    once = conditional_logit(scores, DESIGN, clusters=[None] * 300)
    names = [str(place) for place in range(300)] * 3
    thrice = conditional_logit(np.tile(scores, (3, 1)), DESIGN, clusters=names)
    assert once is not None and thrice is not None
    assert thrice.errors == pytest.approx(once.errors, rel=0.01)


def test_perfect_terms_and_silent_items_have_no_fit():
    perfect = np.tile([0.0, 0.0, 1.0, 1.0], (20, 1))
    assert conditional_logit(perfect, DESIGN) is None
    assert conditional_logit(np.ones((20, 4)), DESIGN) is None
