"""Which configurations are confirmed on all items."""

import json

from moegraft.evals import store
from moegraft.evals.condition import Condition, Item
from moegraft.evals.run import Cell
from moegraft.sweep.confirm import best_transfer, carry_over, choose_confirmed

ITEMS = tuple(Item(name, {}, "", (), "", "") for name in "abcd")
SCORES = {
    "host": (1, 1, 1, 1),
    "router": (0, 1, 0, 0),
    "attention": (0, 1, 1, 1),
    "donor": (1, 1, 1, 1),
}


class Silent:
    """Answers of a cell that is not evaluated here."""

    def likelihoods(self, pairs):
        raise AssertionError

    def generations(self, prompts, decoding, repeat):
        raise AssertionError


def cells_of(tmp_path, condition="t", scores=SCORES):
    """Cells of one condition whose rows are on disk."""
    made = Condition(condition, None, "choose", ITEMS, len(ITEMS), {}, "acc")
    for configuration, values in scores.items():
        rows = [
            {"item": item.hash, "score": float(value)}
            for item, value in zip(ITEMS, values, strict=True)
        ]
        store.write_rows(store.cell_path(tmp_path, configuration, condition), rows)
    return [Cell(name, made, {}, Silent()) for name in scores]


def test_the_best_transfer_is_neither_host_nor_donor(tmp_path):
    assert best_transfer(tmp_path, cells_of(tmp_path), None) == "attention"


def test_the_subset_decides_and_the_first_of_equals_wins(tmp_path):
    assert best_transfer(tmp_path, cells_of(tmp_path), 2) == "router"


def test_without_a_transfer_there_is_no_best(tmp_path):
    parents = {name: SCORES[name] for name in ("host", "donor")}
    assert best_transfer(tmp_path, cells_of(tmp_path, scores=parents), None) is None


def test_host_donor_best_and_named_ones_are_chosen_and_written_down(tmp_path):
    cells = cells_of(tmp_path)
    chosen = choose_confirmed(tmp_path, cells, None, ())
    assert [cell.configuration for cell in chosen] == ["host", "attention", "donor"]
    assert choose_confirmed(tmp_path, cells, None, ("router",)) == cells
    written = json.loads((tmp_path / "confirm.json").read_text())
    assert written["best"] == {"t": "attention"}
    assert written["configurations"] == {"t": ["host", "router", "attention", "donor"]}


def test_rows_are_carried_over_once_and_up_to_the_limit(tmp_path):
    cells = cells_of(tmp_path)[:1]
    own = {"item": "b", "score": 0.0}
    path = store.cell_path(tmp_path, "host", "t", "confirm")
    store.write_rows(path, [own])
    for _ in range(2):
        carry_over(tmp_path, cells, "items", "confirm", 3)
    rows = store.read_rows(tmp_path, "host", "t", "confirm")
    assert sorted(rows) == list("abc")
    assert rows["b"] == own
