import json

import pytest
import torch

from moegraft.bar.route_data import read_route_data
from moegraft.errors import TrainDataError
from moegraft.train.text import IGNORED
from tiny_sweep import CHAT, byte_tokenizer


def read(sources, **changes):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    settings = {"share": 0.2, "held_out": 0.1, "length": 64, "seed": 0} | changes
    return read_route_data(sources, tokenizer, **settings)


def tokens(blocks):
    """Non-padding content of blocks as a sorted multiset of rows' answers."""
    labels = blocks.labels(slice(None))
    return sorted(int(i) for i in labels[labels != IGNORED])


def test_every_source_gives_the_same_share(chats):
    data = read(chats, share=0.5, held_out=0.2)
    for sampled, held, total in data.num_records.values():
        assert total == 40
        assert 2 <= held <= 14
        assert 10 <= sampled <= 26
    again = read(chats, share=0.5, held_out=0.2)
    assert all(
        torch.equal(blocks.ids, again.train[name].ids) for name, blocks in data.train.items()
    )


def test_a_larger_share_holds_the_smaller_one_and_nothing_held_out(tmp_path):
    records = [{"prompt": f"{i}?", "completion": f"<{i}>"} for i in range(200)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))

    def sampled(share, seed=0):
        data = read({"a": str(file)}, share=share, seed=seed)
        text = byte_tokenizer().decode(data.train["a"].ids.flatten().tolist())
        held = byte_tokenizer().decode(data.held_out["a"].ids.flatten().tolist())
        numbers = {i for i in range(200) if f"<{i}>" in text}
        assert not any(f"<{i}>" in held for i in numbers)
        return numbers, {i for i in range(200) if f"<{i}>" in held}

    small, held = sampled(0.1)
    large, same_held = sampled(0.4)
    assert small < large
    assert held == same_held
    other, kept = sampled(0.1, seed=1)
    assert other != small
    assert kept == held


def test_texts_are_read_as_texts(tmp_path):
    for place in range(6):
        (tmp_path / f"{place}.txt").write_text(f"text {place} " * 30)
    data = read({"texts": str(tmp_path)}, share=1.0, held_out=0.3)
    assert data.train["texts"].answers is None
    sampled, held, total = data.num_records["texts"]
    assert (sampled + held, total) == (6, 6)
    assert len(data.held_out_ids["texts"]) == held


def test_a_share_that_would_choose_nothing_chooses_one(tmp_path):
    records = [{"prompt": f"{i}?", "completion": f"<{i}>"} for i in range(3)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = read({"a": str(file)}, share=1e-9, held_out=1e-9)
    assert data.num_records["a"] == (1, 1, 3)


def test_a_source_that_would_all_be_held_out_leaves_one_to_train_on(tmp_path):
    records = [{"text": f"text {i}"} for i in range(3)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = read({"a": str(file)}, held_out=1 - 1e-9)
    assert data.num_records["a"] == (1, 2, 3)
    file.write_text(json.dumps(records[0]) + "\n" + json.dumps(records[0]) + "\n")
    with pytest.raises(TrainDataError, match="holds 2 records, expected two different ones"):
        read({"a": str(file)}, held_out=1 - 1e-9)


def test_texts_of_less_than_a_block_stand_beside_a_domain_of_many(tmp_path, chats):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "and two"}\n{"text": "three"}\n')
    data = read({"short": str(tmp_path / "a.jsonl"), **chats}, share=1.0, held_out=0.2)
    assert {blocks.length for blocks in data.train.values()} == {64}
    text = byte_tokenizer().decode(data.train["short"].ids[0].tolist())
    assert len(data.train["short"]) == 1
    sampled, _, _ = data.num_records["short"]
    assert [word in text for word in ("one", "and two", "three")].count(True) == sampled > 0
