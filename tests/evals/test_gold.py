"""Gold log-probability: the one that is measured is the one that is differentiated."""

import numpy as np
import pytest
import torch

from moegraft.errors import EvalDataError
from moegraft.evals.condition import Item, Pair
from moegraft.evals.gold import gold_batches, gold_logprob_sum, gold_logprobs
from moegraft.evals.harness import load_condition
from moegraft.evals.judge import score_items
from moegraft.evals.scorer import Scorer
from moegraft.runtime import Host


@pytest.fixture(scope="module")
def host(chat_pair):
    return Host.load(str(chat_pair[0]), {"donor": str(chat_pair[1])}, device="cpu")


def item(context, continuation) -> Item:
    pair = Pair(tuple(context), tuple(continuation))
    return Item("0", {}, "", pair.context, "0", "", gold_pair=pair)


@pytest.mark.parametrize("name", ["tiny_write", "tiny_choose"])
def test_it_is_the_gold_logprob_of_a_sweep(host, tiny_tasks, name):
    condition = load_condition(name, tokenizer=host.tokenizer, include=[tiny_tasks], limit=5)
    rows = {row["item"]: row for row in score_items(Scorer(host), condition, condition.items)}
    expected = [rows[one.hash]["gold_logprob"] for one in condition.items]
    np.testing.assert_allclose(gold_logprobs(host, condition.items), expected, atol=1e-5)


def test_batches_sum_to_what_is_measured_whatever_their_size(host):
    items = [item(range(2, 2 + n), range(40, 41 + n % 3)) for n in (1, 4, 9, 30, 5)]
    total = gold_logprobs(host, items).sum()
    for max_tokens in (1, 40, 4096):
        batches = gold_batches(host.model, items, max_tokens=max_tokens)
        assert sum(batch.num_items for batch in batches) == 5
        with torch.no_grad():
            found = sum(float(gold_logprob_sum(host.model, batch)) for batch in batches)
        assert found == pytest.approx(total, abs=1e-3)


def test_prompts_beyond_the_model_are_cut_alike(host):
    long = item([5, *range(2, 200), *range(2, 200), *range(2, 200)], (7, 8, 9))
    (batch,) = gold_batches(host.model, [long])
    assert batch.ids.shape == (1, 512)
    with torch.no_grad():
        found = float(gold_logprob_sum(host.model, batch))
    assert found == pytest.approx(float(gold_logprobs(host, [long])[0]), abs=1e-3)


def test_items_without_a_gold_answer_are_refused(host):
    with pytest.raises(EvalDataError, match="1 of 2 items have no gold answer"):
        gold_logprobs(host, [item((3,), (4,)), item((3,), ())])
