"""Prefixes recovered from token ids: nothing lost, nothing doubled, ancestors visible."""

from hypothesis import given, settings
from hypothesis import strategies as st

from moegraft.evals.prefix import Prefix, Tree, bundles, common_length, share_prefixes

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), max_size=20)


def walk(node: Prefix, path=()):
    yield node, path + node.tokens
    for child in node.children:
        yield from walk(child, path + node.tokens)


@settings(max_examples=200, deadline=None)
@given(SEQUENCES, st.integers(1, 4), st.integers(1, 12))
def test_every_sequence_hangs_once_below_a_true_prefix_of_itself(sequences, tokens, saved):
    root = share_prefixes(sequences, min_tokens=tokens, min_saved=saved)
    seen = []
    for node, path in walk(root):
        assert node.length == len(path)
        for i in node.members:
            assert sequences[i][: len(path)] == path
            assert len(path) < len(sequences[i])
            seen.append(i)
    assert sorted(seen) == list(range(len(sequences)))


def test_nested_prefixes_are_found():
    shots = tuple(range(100))
    passages = [(*shots, *([k] * 60)) for k in (200, 201)]
    sequences = [(*p, 300 + q) for p in passages for q in range(6)]
    root = share_prefixes(sequences, min_saved=256)
    (top,) = root.children
    assert len(top.tokens) == 100
    assert [len(child.tokens) for child in top.children] == [60, 60]


def test_a_sequence_that_is_a_prefix_of_others_keeps_its_last_token():
    sequences = [tuple(range(50)), tuple(range(60)), tuple(range(70))]
    root = share_prefixes(sequences, min_saved=10)
    assert max(node.length for node, _ in walk(root)) <= 49 + 10


@given(
    st.lists(st.integers(0, 1), max_size=9).map(tuple),
    st.lists(st.integers(0, 1), max_size=9).map(tuple),
)
def test_common_length_is_that_of_a_plain_loop(a, b):
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert common_length(a, b) == expected


def test_a_tree_holds_each_shared_token_once_and_shows_ancestors_only():
    tree = Tree()
    first, second = tree.add([5, 6, 7]), tree.add([5, 6, 8, 9])
    assert (first, second) == ([0, 1, 2], [0, 1, 3, 4])
    assert tree.depths == [0, 1, 2, 2, 3]
    seen = tree.visible()
    assert [row.nonzero()[0].tolist() for row in seen] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 3],
        [0, 1, 3, 4],
    ]


def test_bundles_join_what_still_shares_tokens():
    sequences = [(1,) * 20, (1,) * 19 + (2,), (3,) * 20]
    assert bundles(sequences, 0, 512) == [[0, 1], [2]]
    assert bundles(sequences, 0, 20) == [[0], [1], [2]]
