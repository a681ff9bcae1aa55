"""Tasks become conditions: names, data, prompts, token ids, order, settings."""

import json
from pathlib import Path

import pytest

from moegraft.errors import EvalDataError
from moegraft.evals.condition import Decoding, doc_hashes, split_name
from moegraft.evals.harness import list_tasks, load_condition
from tiny_sweep import byte_tokenizer

ARC = {
    "id": "x1",
    "question": "Which is a gas?",
    "choices": {"text": ["ice", "steam", "rock", "sand"], "label": ["1", "2", "3", "4"]},
    "answerKey": "2",
}
BOOLQ = {"question": "is it wet", "passage": "Rain is wet.", "answer": True}
GSM8K = {
    "question": "Two and 1,000?",
    "answer": "It is 2+1000=<<2+1000=1002>>1002.\n#### 1,002",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    three = [GSM8K, GSM8K | {"question": "And again?"}, GSM8K]
    files = {
        "gsm8k/test": three,
        "boolq/validation": [BOOLQ, BOOLQ | {"question": "is it dry", "answer": False}],
        "arc_challenge/test": [ARC, ARC | {"question": "Which melts?", "answerKey": "1"}],
    }
    for name, docs in files.items():
        path = root / f"{name}.jsonl"
        path.parent.mkdir()
        path.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    return root


@pytest.fixture(scope="module")
def load(data):
    def load_one(name: str, **options):
        given = {"tokenizer": byte_tokenizer(), "data_dir": data, "chat_template": False}
        return load_condition(name, **(given | options))

    return load_one


def find(condition, **fields):
    return next(i for i in condition.items if all(i.doc[k] == v for k, v in fields.items()))


def test_gsm8k_asks_for_steps_and_a_final_sentence(load):
    condition = load("paper_gsm8k_cot")
    item = find(condition, question="And again?")
    assert item.prompt == (
        'Question: And again?\nEnd with the sentence "The answer is N.", where N is a number.\n'
        "Answer: Let's think step by step."
    )
    assert item.gold == "1,002"
    forced = byte_tokenizer().decode(item.gold_pair.continuation)
    assert forced == " It is 2+1000=1002.\nThe answer is 1,002."
    assert condition.decoding == Decoding(512, ("\nQuestion:", "</s>", "<|im_end|>"))
    assert condition.name == "paper_gsm8k_cot"
    assert load("paper_gsm8k_cot/cot").settings == condition.settings


def test_a_gold_answer_follows_the_prompt_that_generation_follows(load):
    for chat in (True, False):
        for name in ("paper_gsm8k_cot", "paper_boolq"):
            for item in load(name, chat_template=chat).items:
                assert item.gold_pair.context == item.prompt_ids
                answer = byte_tokenizer().decode(item.gold_pair.continuation)
                assert answer.startswith(" ") is not chat
                assert not answer.startswith("\n")


def test_boolq_asks_for_yes_or_no_and_clusters_by_passage(load):
    condition = load("paper_boolq")
    item = find(condition, question="is it wet")
    assert item.prompt == ("Rain is wet.\nQuestion: is it wet?\nAnswer with yes or no.\nAnswer:")
    assert item.gold == "yes"
    assert len({i.cluster for i in condition.items}) == 1


def test_arc_options_are_lettered_whatever_their_labels(load):
    item = find(load("paper_arc_challenge/0-shot"), question="Which is a gas?")
    assert item.prompt == (
        "Question: Which is a gas?\nA. ice\nB. steam\nC. rock\nD. sand\n"
        "Answer with the letter of the correct option.\nAnswer:"
    )
    assert item.gold == "B"


def test_five_shots_are_the_same_for_every_item(load):
    condition = load("paper_arc_challenge/5-shot")
    heads = {item.prompt.rpartition("Question: ")[0] for item in condition.items}
    assert len(heads) == 1
    assert heads.pop().count("Answer: ") == 5
    assert [i.hash for i in condition.items] == [i.hash for i in load("paper_arc_challenge").items]


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("paper_arc_challenge_letters/5-shot", [" A", " B", " C", " D"]),
        ("paper_arc_challenge_choices/5-shot", [" ice", " steam", " rock", " sand"]),
        ("paper_boolq_mc/5-shot", [" no", " yes"]),
    ],
)
def test_multiple_choice_by_log_likelihood(load, name, choices):
    condition = load(name)
    item = condition.items[0]
    assert condition.kind == "choose"
    texts = [byte_tokenizer().decode(pair.continuation) for pair in item.pairs]
    assert texts == choices
    assert item.gold_pair in item.pairs


def test_the_chat_template_puts_one_start_token_and_turns_shots_into_turns(load):
    item = load("paper_arc_challenge/5-shot", chat_template=True).items[0]
    assert item.prompt_ids[0] == 0
    assert item.prompt_ids.count(0) == 1
    assert item.prompt.count("<|user|>") == 6
    assert item.prompt.endswith("<|assistant|>\n")


def test_the_system_prompt_and_template_arguments_arrive(load):
    item = load("paper_boolq", chat_template=True, system_prompt="Be brief.").items[0]
    assert "<|system|>\nBe brief.\n" in item.prompt
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ mood }}: {{ messages[0]['content'] }}"
    options = {"tokenizer": tokenizer, "chat_template_kwargs": {"mood": "calm"}}
    assert load("paper_boolq", chat_template=True, **options).items[0].prompt.startswith("calm: ")


def test_a_tokenizer_without_template_is_an_error(load):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(EvalDataError, match="--no-chat-template"):
        load("paper_boolq", tokenizer=tokenizer, chat_template=True)


def test_identical_documents_get_hashes_of_their_own(load):
    condition = load("paper_gsm8k_cot")
    assert condition.num_total == len({item.hash for item in condition.items}) == 3


def test_bookkeeping_fields_do_not_change_a_hash():
    assert doc_hashes([{"a": 1, "_source": "x"}]) == doc_hashes([{"a": 1}])
    assert doc_hashes([{"a": 1}]) != doc_hashes([{"a": 2}])


def test_a_limit_takes_a_prefix(load):
    whole = load("paper_gsm8k_cot")
    assert [i.hash for i in load("paper_gsm8k_cot", limit=2).items] == [
        i.hash for i in whole.items[:2]
    ]


def test_sampling_needs_a_temperature_and_is_not_binary(load):
    with pytest.raises(EvalDataError, match="set a temperature"):
        load("paper_gsm8k_cot", repeats=4)
    with pytest.raises(EvalDataError, match="compared by likelihood, which 4 repeats would not"):
        load("paper_arc_challenge_letters", repeats=4, temperature=0.6)
    condition = load("paper_gsm8k_cot", repeats=4, temperature=0.6, max_gen_toks=99)
    assert (condition.repeats, condition.binary) == (4, False)
    assert condition.decoding.temperature == 0.6
    assert condition.decoding.max_new_tokens == 99
    assert load("paper_gsm8k_cot").binary


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("paper_boolq/tree-of-thought", "unknown prompting 'tree-of-thought', expected N-shot"),
        ("nowhere.yaml", "no such task file"),
    ],
)
def test_wrong_names_are_errors(load, name, message):
    with pytest.raises(EvalDataError, match=message):
        load(name)


def test_missing_local_data_names_the_folders_it_looked_for(load, tmp_path):
    with pytest.raises(EvalDataError, match="paper_boolq, boolq"):
        load("paper_boolq", data_dir=tmp_path)
    (tmp_path / "boolq").mkdir()
    with pytest.raises(EvalDataError, match=r"validation\.jsonl"):
        load("paper_boolq", data_dir=tmp_path)


def test_a_task_file_by_path_and_from_an_included_folder(load, tiny_tasks):
    by_path = load(str(tiny_tasks / "tiny_choose.yaml"))
    assert by_path.name == "tiny_choose"
    included = load("tiny_choose", include=[tiny_tasks])
    assert included.settings == by_path.settings
    assert split_name("a/b.yaml/5-shot") == ("a/b.yaml", "5-shot")


def test_random_few_shots_are_drawn_once(load, tiny_tasks):
    condition = load(f"{tiny_tasks / 'tiny_write.yaml'}/3-shot")
    blocks = {tuple(item.prompt.split("\n\n")[:2]) for item in condition.items}
    assert len(blocks) <= 3  # the examples, minus an item that is itself one of them
    assert "same 3 examples" in condition.notes[0]


@pytest.mark.slow
def test_our_names_do_not_exist_in_lm_eval():
    from lm_eval.tasks import TaskManager

    assert not set(list_tasks()) & set(TaskManager().all_tasks)


@pytest.mark.slow
def test_lm_evals_own_tasks_load_by_name_with_local_data(load):
    condition = load("gsm8k_cot_zeroshot")
    assert condition.items[0].prompt.endswith("A: Let's think step by step.")
    with pytest.raises(EvalDataError, match="no task 'gsm9k'"):
        load("gsm9k")
