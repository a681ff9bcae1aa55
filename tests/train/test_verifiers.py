import pytest

from moegraft.train.verifiers import rewards, verify


@pytest.mark.parametrize(
    ("kind", "response", "gold", "right"),
    [
        ("last_number", "2*3=6. 6+1=7. The answer is 7.", "7", True),
        ("last_number", "The answer is 7.0", "7", True),
        ("last_number", "7 at first, then 8", "7", False),
        ("last_number", "no idea", "7", False),
        ("yes_no", "Yes, it is.", "yes", True),
        ("yes_no", "nothing", "no", False),
        ("letter", "B.", "B", True),
        ("letter", "Because", "B", False),
    ],
)
def test_a_response_is_right_when_its_answer_is(kind, response, gold, right):
    assert verify(kind, response, gold) is right


def test_rewards_are_one_or_zero():
    assert rewards(["yes", "A"], ["yes_no", "letter"], ["no", "A"]) == [0.0, 1.0]
