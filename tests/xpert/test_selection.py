import json

import numpy as np
import pytest

from moegraft.errors import RecipeError
from moegraft.xpert.counts import RoutingTable
from moegraft.xpert.identify import identify_experts
from moegraft.xpert.selection import chosen_experts, expert_number, name_expert, read_selection


@pytest.fixture
def chosen():
    counts = np.array([[[5, 3, 2]], [[2, 3, 5]]])
    table = RoutingTable("m", ("a", "b"), (0,), 1, np.array([10, 10]), counts, num_shared=1)
    return identify_experts(table, num_best=2).as_dict()


def test_a_saved_choice_is_read_back_from_its_file_or_folder(chosen, tmp_path):
    (tmp_path / "selection.json").write_text(json.dumps(chosen))
    for path in (tmp_path, tmp_path / "selection.json"):
        assert chosen_experts(read_selection(path)) == {0: [3, 1]}


def test_names_and_numbers_of_experts_are_each_others_inverse():
    assert [expert_number(name_expert(n, 3), 3) for n in range(5)] == list(range(5))
    for odd in (-1, 3, 1.5, None, True, "best", "shared:", "shared:-1", "2"):
        with pytest.raises(ValueError, match="is none of 3 experts"):
            expert_number(odd, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one["layers"][0]["chosen"][0].update(expert=-1), "-1 is none of 3 experts"),
        (lambda one: one["layers"][0]["chosen"][0].update(expert="best"), "'best' is none of"),
        (lambda one: one["layers"][0]["chosen"][0].update(expert=1), "2 different experts"),
        (lambda one: one["layers"][0]["chosen"].pop(), "damaged: layer 0; expected 2"),
        (lambda one: one["layers"].append(one["layers"][0]), "damaged: the list of layers"),
        (lambda one: one["layers"].clear(), "damaged: the list of layers"),
        (lambda one: one.update(num_best="2"), "no selection of `moegraft xpert identify`"),
        (lambda one: one.update(num_best=0), "damaged: layer 0"),
        (lambda one: one.pop("fingerprint"), "damaged: the list of layers, or their source"),
    ],
)
def test_a_damaged_choice_is_one_line(chosen, tmp_path, change, message):
    change(chosen)
    (tmp_path / "selection.json").write_text(json.dumps(chosen))
    with pytest.raises(RecipeError, match=message) as raised:
        read_selection(tmp_path)
    assert "\n" not in str(raised.value) and "selection.json" in str(raised.value)
