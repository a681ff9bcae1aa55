"""Rows that come and go, stop strings, samples, flags."""

import pytest

from moegraft.evals.condition import Decoding
from moegraft.evals.sampling import Stopper, is_loop
from moegraft.evals.scorer import Scorer
from tiny_models import choice_requests, tiny_model
from tiny_sweep import byte_tokenizer

PROMPTS = [tuple(byte_tokenizer()(c)["input_ids"]) for c, _ in choice_requests(9)[::4] if c]


def answers(decoding: Decoding, repeat=None, **options):
    scorer = Scorer(tiny_model("olmoe"), byte_tokenizer(), **options)
    return dict(scorer.generations(PROMPTS, decoding, repeat))


def test_few_rows_in_flight_give_the_same_texts_as_many():
    decoding = Decoding(20, stop=("e",))
    many = answers(decoding)
    assert answers(decoding, max_rows=3, max_tokens=64) == many
    assert answers(decoding, max_rows=1) == many


def test_the_budget_truncates_and_says_so():
    found = answers(Decoding(7), eos_ids=[])
    assert all(one.truncated and one.num_tokens == 7 for one in found.values())


def test_a_stop_string_ends_a_text_and_is_cut_off():
    free = answers(Decoding(24), eos_ids=[])
    stop = free[0].text[3:5]
    stopped = answers(Decoding(24, stop=(stop,)), eos_ids=[])
    assert stopped[0].text == free[0].text.split(stop)[0]
    assert not stopped[0].truncated


def test_a_stop_string_is_found_across_tokens():
    tokenizer = byte_tokenizer()
    stopper = Stopper(tokenizer, [0], ("\nQ:", "ö"))
    ids = tokenizer("wet\nQ: ö", add_special_tokens=False)["input_ids"]
    done = [n for n in range(1, len(ids) + 1) if stopper.is_done(ids[:n])]
    assert done[0] == 6
    assert stopper.text(ids) == "wet"
    assert stopper.is_done([*ids[:2], 0])
    assert stopper.text([*ids[:2], 0]) == "we"


def test_samples_depend_on_seed_prompt_and_repeat_only():
    decoding = Decoding(12, temperature=1.0, top_p=0.95, top_k=50, seed=3)
    found = answers(decoding)
    assert answers(decoding, max_rows=2) == found
    assert answers(decoding, repeat=[1] * len(PROMPTS)) != found
    assert answers(Decoding(12, temperature=1.0, seed=4)) != answers(
        Decoding(12, temperature=1.0, seed=3)
    )


def test_a_tiny_nucleus_is_greedy():
    greedy = answers(Decoding(12))
    assert answers(Decoding(12, temperature=1.0, top_k=1)) == greedy
    assert answers(Decoding(12, temperature=0.7, top_p=1e-6)) == greedy


@pytest.mark.slow
def test_continuous_batching_gives_the_same_texts():
    decoding = Decoding(12, stop=("e",))
    assert answers(decoding, paged=True) == answers(decoding)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([7] * 24, True),
        ([7] * 23, False),
        ([1, 2, 3] + [4, 5] * 12, True),
        (list(range(40)), False),
        ([9, 9, 9, *list(range(30)) * 3], True),
        ([], False),
    ],
)
def test_repetition_loops_are_recognised(tokens, expected):
    assert is_loop(tokens) == expected
