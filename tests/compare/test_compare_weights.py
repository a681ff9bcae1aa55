import pytest

from moegraft.compare.weights import find_condition, resolve_weights
from moegraft.errors import RecipeError

CONDITIONS = ("nano_math/cot", "nano_reading/0-shot", "nano_science/0-shot", "nano_science/5-shot")


def test_a_condition_is_found_by_a_part_of_its_name():
    assert find_condition("math", CONDITIONS, "--condition") == "nano_math/cot"
    assert find_condition("nano_science/5-shot", CONDITIONS, "x") == "nano_science/5-shot"
    with pytest.raises(RecipeError, match=r"--weights science: fits several; expected one of: .*5"):
        find_condition("science", CONDITIONS, "--weights")
    with pytest.raises(RecipeError, match="--condition boolq: no such condition; expected"):
        find_condition("boolq", CONDITIONS, "--condition")


def test_weights_become_shares_and_wrong_ones_are_refused():
    found = resolve_weights({"math": 3, "5-shot": 1}, CONDITIONS)
    assert found == {"nano_math/cot": 0.75, "nano_science/5-shot": 0.25}
    with pytest.raises(RecipeError, match="math: expected a positive number, got -1"):
        resolve_weights({"math": -1}, CONDITIONS)
    with pytest.raises(RecipeError, match="nano_math/cot is named twice"):
        resolve_weights({"math": 1, "cot": 1}, CONDITIONS)
