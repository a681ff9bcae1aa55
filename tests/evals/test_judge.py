"""Item rows: scores by our extraction and by lm-eval, flags, gold log-probabilities."""

import json

import pytest

from moegraft.errors import EvalDataError
from moegraft.evals.harness import load_condition
from moegraft.evals.judge import Generation, Likelihood, format_warning, score_items
from moegraft.evals.scorer import Scorer
from tiny_models import tiny_model
from tiny_sweep import byte_tokenizer

FIELDS = {
    "item", "score", "scores", "prompt", "cluster", "output", "extracted", "gold",
    "gold_logprob", "num_prompt_tokens", "num_tokens", "truncated", "looped",
}  # fmt: skip


class Recited:
    """Answers that were written beforehand, to test the judging alone."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def likelihoods(self, pairs):
        for i, pair in enumerate(pairs):
            yield i, Likelihood(-float(len(pair.continuation)), False)

    def generations(self, prompts, decoding, repeat):
        for i, _ in enumerate(prompts):
            yield i, Generation(self.texts[repeat[i]], 5, repeat[i] == 1, False)


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory):
    root = tmp_path_factory.mktemp("judge")
    (root / "gsm8k").mkdir()
    doc = {"question": "How many?", "answer": "Many.\n#### 1,234"}
    (root / "gsm8k/test.jsonl").write_text(json.dumps(doc) + "\n")

    def load(**options):
        return load_condition(
            "paper_gsm8k_cot", tokenizer=byte_tokenizer(), data_dir=root, **options
        )

    return load


def test_a_row_holds_our_score_and_those_of_lm_eval(gsm8k):
    condition = gsm8k()
    recited = Recited("So $1,234.00 it is")
    (row,) = score_items(recited, condition, condition.items)
    assert set(row) == FIELDS
    assert row["score"] == 1.0
    assert row["extracted"] == "1234.00"
    assert row["scores"] == {
        "exact_match": 1.0,
        "exact_match,strict-match": 0.0,
        "exact_match,flexible-extract": 0.0,
        "format": 0.0,
    }
    assert row["gold_logprob"] == -len(condition.items[0].gold_pair.continuation)


def test_repeats_are_averaged_and_flags_joined(gsm8k):
    condition = gsm8k(repeats=2, temperature=0.5)
    (row,) = score_items(
        Recited("The answer is 1234.", "The answer is 7."), condition, condition.items
    )
    assert row["score"] == 0.5
    assert row["num_tokens"] == 10
    assert row["truncated"]
    assert row["output"] == "The answer is 1234."


def test_a_warning_when_no_parent_uses_the_format_of_the_gold_answer(gsm8k):
    condition = gsm8k()
    rows = {
        text: list(score_items(Recited(text), condition, condition.items))
        for text in ("It is 7", "The answer is 7.")
    }
    assert format_warning(condition, {"host": rows["It is 7"], "donor": rows["It is 7"]})
    mixed = {"host": rows["It is 7"], "donor": rows["The answer is 7."]}
    assert format_warning(condition, mixed) is None
    assert format_warning(condition, {"host": [], "donor": []}) is None


def test_choices_are_judged_by_the_tasks_own_metric(tiny_tasks):
    condition = load_condition(
        "tiny_choose", tokenizer=byte_tokenizer(), include=[tiny_tasks], limit=6
    )
    rows = {row["item"]: row for row in score_items(Recited(), condition, condition.items)}
    assert set(rows) == {item.hash for item in condition.items}
    for item in condition.items:
        lengths = [len(pair.continuation) for pair in item.pairs]
        row = rows[item.hash]
        assert row["extracted"] == item.choices[lengths.index(min(lengths))]
        assert row["score"] == float(row["extracted"] == item.gold)
        assert row["gold_logprob"] == -len(item.gold_pair.continuation)


def test_a_metric_without_a_value_per_item_is_an_error(tiny_tasks, tmp_path):
    text = (tiny_tasks / "tiny_choose.yaml").read_text()
    task = tmp_path / "odd.yaml"
    task.write_text(text.replace("version: 1.0", "version: 1.0, primary: rouge"))
    condition = load_condition(str(task), tokenizer=byte_tokenizer(), limit=1)
    with pytest.raises(EvalDataError, match="'rouge' has no value per item, got acc"):
        list(score_items(Recited(), condition, condition.items))


def test_rows_of_a_real_model_are_complete(tiny_tasks):
    scorer = Scorer(tiny_model("olmoe"), byte_tokenizer())
    for name in ("tiny_write", "tiny_choose"):
        condition = load_condition(name, tokenizer=byte_tokenizer(), include=[tiny_tasks])
        rows = list(score_items(scorer, condition, condition.items))
        assert {row["item"] for row in rows} == {item.hash for item in condition.items}
        assert all(set(row) == FIELDS and row["gold_logprob"] < 0 for row in rows)
        json.dumps(rows)
