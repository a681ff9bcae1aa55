"""XPERT's ten benchmarks: prompts, choices and scores of made-up items in the real data's shape."""

import json
from pathlib import Path

import lm_eval
import pytest

from moegraft.errors import EvalDataError
from moegraft.evals.benchmarks import medmcqa, rouge_l
from moegraft.evals.harness import list_tasks, load_condition
from moegraft.evals.judge import Generation, Likelihood, score_items
from tiny_sweep import byte_tokenizer

ALPACA = "Below is an instruction that describes a task"
INSTRUCTION = {"instruction": "Name a color.", "input": "", "output": "The color is red."}
DATA = {
    "winogrande/validation": [
        {
            "sentence": "The cup fell off the shelf because the _ was crooked.",
            "option1": "cup",
            "option2": "shelf",
            "answer": "2",
        }
    ],
    "piqa/validation": [{"goal": "Dry a cup", "sol1": "wet it", "sol2": "wipe it", "label": 1}],
    "boolq/validation": [{"question": "is it wet", "passage": "Rain is wet.", "answer": True}],
    "medmcqa/dev": [
        {"question": "Which is a bone? ", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 4},
        {"question": "Which is not?", "opa": "e", "opb": "f", "opc": "g", "opd": "h", "cop": 1},
    ],
    "casehold/test": [
        {"citing_prompt": "See Doe v. Roe (<HOLDING>). So"}
        | {f"holding_{k}": f"holding that {k} is enough" for k in range(5)}
        | {"label": "3"}
    ],
    "dolly/valid": [INSTRUCTION],
    "self_instruct/valid": [INSTRUCTION | {"input": "Not blue."}],
    "vicuna/valid": [{"instruction": "Name a color.", "output": "Red."}],
    "sinst/validation": [
        INSTRUCTION | {"output": ["It is red.", "The color is blue."], "topic": "task1"},
        INSTRUCTION | {"input": "Again.", "output": ["Gray."], "topic": "task1"},
    ],
    "uinst/valid": [INSTRUCTION],
}
ROUGE = ("xpert_dolly", "xpert_self_instruct", "xpert_vicuna", "xpert_sni", "xpert_unni")
CHOICE = ("xpert_winogrande", "xpert_piqa", "xpert_boolq", "xpert_medmcqa", "xpert_casehold")


def write(root: Path, data) -> Path:
    for name, docs in data.items():
        path = root / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    return root


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    data = write(tmp_path_factory.mktemp("data"), DATA)
    return lambda name: load_condition(
        name, tokenizer=byte_tokenizer(), data_dir=data, chat_template=False
    )


def spoken(pair):
    decode = byte_tokenizer().decode
    return decode(pair.context), decode(pair.continuation)


class Oracle:
    """Prefers the gold choice, or answers as it is told."""

    def __init__(self, condition, texts=()):
        self.golds = {item.gold_pair for item in condition.items}
        self.texts = texts

    def likelihoods(self, pairs):
        for place, pair in enumerate(pairs):
            yield place, Likelihood(0.0 if pair in self.golds else -9.0, False)

    def generations(self, prompts, decoding, repeat):
        for place, which in enumerate(repeat):
            yield place, Generation(self.texts[which], 3, False, False)


def test_the_ten_are_ours_and_no_name_of_lm_eval():
    assert {*ROUGE, *CHOICE} <= {*list_tasks()}
    theirs = Path(lm_eval.__file__).parent / "tasks"
    assert not [file for file in theirs.rglob("*.yaml") if b"xpert_" in file.read_bytes()]


@pytest.mark.parametrize(
    ("name", "context", "choices", "gold"),
    [
        ("xpert_piqa", "Question: Dry a cup\nAnswer:", [" wet it", " wipe it"], 1),
        ("xpert_boolq", "Rain is wet.\nQuestion: is it wet?\nAnswer:", [" no", " yes"], 1),
        (
            "xpert_casehold",
            "See Doe v. Roe (",
            [f"holding that {k} is enough" for k in range(5)],
            3,
        ),
    ],
)
def test_choices_continue_the_prompt(load, name, context, choices, gold):
    condition = load(name)
    (item,) = condition.items
    assert [spoken(pair) for pair in item.pairs] == [(context, choice) for choice in choices]
    assert item.pairs.index(item.gold_pair) == gold
    (row,) = score_items(Oracle(condition), condition, condition.items)
    assert row["score"] == 1.0 and condition.primary == "acc"


def test_winogrande_puts_each_name_into_the_sentence(load):
    (item,) = load("xpert_winogrande").items
    rest = " was crooked."
    assert [spoken(pair) for pair in item.pairs] == [
        ("The cup fell off the shelf because the cup", rest),
        ("The cup fell off the shelf because the shelf", rest),
    ]
    assert item.gold_pair == item.pairs[1]


def test_lexglue_fields_of_casehold_are_read_too(tmp_path):
    doc = {"context": "See A v. B (<HOLDING>).", "endings": list("vwxyz"), "label": 2}
    data = write(tmp_path, {"case_hold/test": [doc]})
    condition = load_condition(
        "xpert_casehold", tokenizer=byte_tokenizer(), data_dir=data, chat_template=False
    )
    assert spoken(condition.items[0].gold_pair) == ("See A v. B (", "x")


def test_medmcqa_counts_from_one_in_the_original_files_and_from_zero_on_the_hub(load):
    condition = load("xpert_medmcqa")
    golds = {item.doc["question"]: item.gold for item in condition.items}
    assert golds == {"Which is a bone? ": "D", "Which is not?": "A"}
    prompt = next(i.prompt for i in condition.items if i.gold == "D")
    assert prompt == "Question: Which is a bone?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    from datasets import Dataset

    hub = medmcqa(Dataset.from_list([{"cop": 0}, {"cop": 3}]))
    assert hub["gold"][:] == [0, 3]
    with pytest.raises(EvalDataError, match="cannot be told whether it counts from 0"):
        medmcqa(Dataset.from_list([{"cop": 2}]))
    with pytest.raises(EvalDataError, match="expected 0 to 3 or 1 to 4"):
        medmcqa(Dataset.from_list([{"cop": 0}, {"cop": 4}]))


@pytest.mark.parametrize("name", ROUGE)
def test_instructions_are_wrapped_as_in_minillm_and_sampled_five_times(load, name):
    condition = load(name)
    item = condition.items[0]
    assert item.prompt.startswith(ALPACA) and item.prompt.endswith("### Response:\n")
    assert ("### Input:\nNot blue.\n\n" in item.prompt) is (name == "xpert_self_instruct")
    assert (condition.repeats, condition.decoding.temperature) == (5, 1.0)
    assert (condition.decoding.top_p, condition.decoding.top_k) == (1.0, 0)
    assert condition.decoding.max_new_tokens == 256
    assert condition.primary == "rouge_l" and not condition.binary


def test_the_score_is_the_mean_of_five_samples_against_the_best_reference(load):
    condition = load("xpert_sni")
    item = next(i for i in condition.items if not i.doc["input"])
    texts = ["It is red.", " it IS red", "nothing", "", "The color was blue."]
    (row,) = score_items(Oracle(condition, texts), condition, [item])
    assert row["score"] == pytest.approx((1 + 1 + 0 + 0 + 0.75) / 5)
    assert row["scores"]["exact_match"] == pytest.approx(2 / 5)
    assert len({i.cluster for i in condition.items}) == 1  # one task of Natural Instructions


def test_rouge_l_is_the_longest_common_subsequence_of_stemmed_words():
    doc = {"output": "The dogs barked at cats"}
    # dog, bark, cat: 3 of 5 words of the reference and 3 of 4 of the response, in this order
    assert rouge_l(doc, ["dog barking loudly cat"])["rouge_l"] == pytest.approx(2 / 3)
    assert rouge_l(doc, ["cat dog"])["rouge_l"] == pytest.approx(2 * 1 / (5 + 2))


def test_training_records_are_rendered_like_those_that_are_scored(tmp_path):
    train = [
        {"passage": "Ice is cold.", "question": "is ice warm", "answer": False},
        {"passage": "Ice is cold.", "question": "is ice cold", "answer": True},
    ]
    data = write(tmp_path, {"boolq/train": train, "boolq/validation": DATA["boolq/validation"]})
    options = {"tokenizer": byte_tokenizer(), "data_dir": data, "chat_template": False}
    found = load_condition("xpert_boolq", training=True, **options)
    assert {spoken(item.gold_pair) for item in found.items} == {
        ("Ice is cold.\nQuestion: is ice warm?\nAnswer:", " no"),
        ("Ice is cold.\nQuestion: is ice cold?\nAnswer:", " yes"),
    }
    assert len(load_condition("xpert_boolq", **options).items) == 1
    with pytest.raises(EvalDataError, match="names no training split"):
        load_condition("xpert_vicuna", training=True, **options)


def test_a_record_without_a_field_of_the_prompt_is_named(tmp_path):
    data = write(tmp_path, {"piqa/validation": [{"goal": "Dry a cup", "sol1": "wet it"}]})
    with pytest.raises(EvalDataError, match="xpert_piqa: a record lacks a field: 'label'"):
        load_condition("xpert_piqa", tokenizer=byte_tokenizer(), data_dir=data, chat_template=False)
