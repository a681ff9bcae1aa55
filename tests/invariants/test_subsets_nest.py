"""Invariant 11: a subset is a prefix of one seeded order, and conditions of a task share items."""

import hashlib

import pytest

from moegraft.evals.condition import canonical_order
from tiny_sweep import byte_tokenizer


@pytest.fixture(scope="module")
def hashes_of(tiny_tasks):
    from moegraft.evals.harness import load_condition

    def load(name: str, limit: int | None, seed: int = 0) -> list[str]:
        condition = load_condition(
            name, tokenizer=byte_tokenizer(), include=(tiny_tasks,), limit=limit, seed=seed
        )
        return [item.hash for item in condition.items]

    return load


def test_the_order_is_that_of_sha256_of_seed_and_item():
    hashes = [f"{i:016x}" for i in range(50)]
    for seed in (0, 1):
        ranks = [hashlib.sha256(f"{seed}:{one}".encode()).hexdigest() for one in hashes]
        assert canonical_order(hashes, seed) == sorted(range(50), key=ranks.__getitem__)


def test_a_larger_subset_contains_the_smaller_one_in_the_same_order(hashes_of):
    everything = hashes_of("tiny_write", None)
    assert len(everything) == 24
    for limit in (1, 5, 23):
        assert hashes_of("tiny_write", limit) == everything[:limit]


def test_conditions_of_one_task_share_items(hashes_of):
    assert hashes_of("tiny_write", 6) == hashes_of("tiny_choose", 6)
    assert hashes_of("tiny_write", 6) == hashes_of("tiny_write/2-shot", 6)


def test_another_seed_is_another_subset(hashes_of):
    assert set(hashes_of("tiny_write", 6, seed=0)) != set(hashes_of("tiny_write", 6, seed=1))
    assert set(hashes_of("tiny_write", None, seed=0)) == set(hashes_of("tiny_write", None, seed=1))
