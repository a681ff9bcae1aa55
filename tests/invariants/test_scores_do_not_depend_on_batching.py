"""Invariant 7: in float32, scores do not depend on how the work is cut, ordered or shared."""

import random

import pytest

from moegraft.evals.condition import Decoding
from moegraft.evals.harness import load_condition
from moegraft.evals.judge import score_items
from moegraft.evals.scorer import Scorer
from moegraft.evals.tokens import encode_pairs
from tiny_models import choice_requests, tiny_model
from tiny_sweep import byte_tokenizer

PAIRS = encode_pairs(byte_tokenizer(), choice_requests(16))
PROMPTS = list(dict.fromkeys(pair.context for pair in PAIRS))


def logprobs(family: str, pairs, **options):
    scorer = Scorer(tiny_model(family), byte_tokenizer(), **options)
    found = dict(scorer.likelihoods(pairs))
    return [found[i].logprob for i in range(len(pairs))]


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "jamba"])
def test_likelihoods_do_not_depend_on_batches_order_or_sharing(family):
    expected = logprobs(family, PAIRS)
    assert logprobs(family, PAIRS, max_tokens=128) == pytest.approx(expected, abs=1e-5, rel=1e-6)
    one_by_one = [logprobs(family, [pair])[0] for pair in PAIRS[::7]]
    assert one_by_one == pytest.approx(expected[::7], abs=1e-5, rel=1e-6)
    order = random.Random(1).sample(range(len(PAIRS)), len(PAIRS))
    shuffled = logprobs(family, [PAIRS[i] for i in order])
    assert shuffled == pytest.approx([expected[i] for i in order], abs=1e-5, rel=1e-6)


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "jamba"])
def test_texts_do_not_depend_on_batches_order_or_sharing(family):
    def texts(prompts, **options):
        scorer = Scorer(tiny_model(family), byte_tokenizer(), **options)
        found = dict(scorer.generations(prompts, Decoding(12, stop=("e",))))
        return [found[i] for i in range(len(prompts))]

    expected = texts(PROMPTS)
    assert texts(PROMPTS, max_rows=2, max_tokens=100) == expected
    assert texts(PROMPTS[::-1]) == expected[::-1]
    assert [texts([prompt])[0] for prompt in PROMPTS[::5]] == expected[::5]


def test_rows_do_not_depend_on_shards_or_on_what_ran_before(tiny_tasks):
    scorer = Scorer(tiny_model("olmoe"), byte_tokenizer())

    def rows(condition, items):
        return {row["item"]: row for row in score_items(scorer, condition, items)}

    for name in ("tiny_write", "tiny_choose"):
        condition = load_condition(name, tokenizer=byte_tokenizer(), include=[tiny_tasks])
        whole = rows(condition, condition.items)
        shards = rows(condition, condition.items[::2]) | rows(condition, condition.items[1::2])
        assert shards.keys() == whole.keys()
        for item, row in whole.items():
            other = dict(shards[item])
            assert other.pop("gold_logprob") == pytest.approx(row["gold_logprob"], abs=1e-5)
            assert other == {k: v for k, v in row.items() if k != "gold_logprob"}
