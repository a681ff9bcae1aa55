from itertools import combinations

import numpy as np

from moegraft.report.expert_figures import place_labels


def test_a_label_on_its_own_stands_to_the_upper_right():
    spots = np.array([[0.0, 0.0], [100.0, 0.0]])
    assert place_labels(spots, ["3", "41"]) == [(4, 3), (4, 3)]


def test_labels_of_close_markers_lie_on_neither_markers_nor_one_another():
    spots = np.array([[50.0, 20.0], [53.0, 22.0], [47.0, 21.0], [54.0, 30.0]])
    labels = ["48", "46", "23", "30"]
    boxes = [
        (x + dx, y + dy, x + dx + 0.62 * 7 * len(label), y + dy + 7)
        for (x, y), (dx, dy), label in zip(spots, place_labels(spots, labels), labels, strict=True)
    ]
    for one, other in combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    for left, low, right, high in boxes:
        assert not any(left < x < right and low < y < high for x, y in spots)


def test_a_crowd_still_gets_all_its_labels():
    spots = np.zeros((40, 2))
    assert len(place_labels(spots, [str(n) for n in range(40)])) == 40
