import json

import numpy as np
import pytest
import torch

from moegraft.errors import TrainDataError
from moegraft.nano import tokenizer as tokenizers
from moegraft.train.text import (
    IGNORED,
    Blocks,
    check_weights,
    is_held_out,
    mixed_order,
    pack,
    read_documents,
)

DOCUMENTS = ["red and blue", "a bee", "green, green and green again"]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train(DOCUMENTS * 4, vocab_size=300)


def _jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_documents_are_the_same_from_lines_columns_and_plain_files(tmp_path):
    from datasets import Dataset

    lines = _jsonl(tmp_path / "a.jsonl", [{"text": text} for text in DOCUMENTS])
    columns = tmp_path / "a.parquet"
    Dataset.from_list([{"text": text} for text in DOCUMENTS]).to_parquet(columns)
    folder = tmp_path / "plain"
    folder.mkdir()
    for number, text in enumerate(DOCUMENTS):
        (folder / f"{number}.txt").write_text(text)
    for source in (lines, columns, folder):
        assert [*read_documents(source)] == DOCUMENTS


def test_fields_of_a_record_are_joined(tmp_path):
    file = _jsonl(tmp_path / "a.jsonl", [{"question": "Red?", "answer": "No."}])
    assert [*read_documents(file, fields=("question", "answer"))] == ["Red?\nNo."]


def test_sources_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(TrainDataError, match="no such file or folder"):
        [*read_documents(tmp_path / "none.jsonl")]
    with pytest.raises(TrainDataError, match="no text files"):
        [*read_documents(tmp_path)]
    file = _jsonl(tmp_path / "a.jsonl", [{"body": "x"}])
    with pytest.raises(TrainDataError, match="no text in text; fields with text: body"):
        [*read_documents(file)]
    file.write_text("{broken\n")
    with pytest.raises(TrainDataError, match="cannot be read"):
        [*read_documents(file)]
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(TrainDataError, match="expected one of"):
        [*read_documents(tmp_path / "a.csv")]


def test_packing_keeps_every_token_and_where_documents_begin(tokenizer):
    blocks = pack(DOCUMENTS, tokenizer, 8)
    start, end = tokenizer.eos_token_id, tokenizer.eos_token_id
    whole = []
    places = []
    for text in DOCUMENTS:
        ids = [start, *tokenizer(text, add_special_tokens=False)["input_ids"], end]
        for offset, token in enumerate(ids):
            whole.append(token)
            is_new = offset == 0 or (len(whole) - 1) % 8 == 0
            places.append(0 if is_new else places[-1] + 1)
    size = len(whole) // 8 * 8
    assert blocks.ids.flatten().tolist() == whole[:size]
    assert blocks.positions.flatten().tolist() == places[:size]
    assert blocks.num_tokens == size and blocks.length == 8


def test_no_loss_is_taken_on_what_nothing_predicts(tokenizer):
    blocks = pack(DOCUMENTS, tokenizer, 8)
    labels = blocks.labels(slice(None))
    begins = blocks.positions == 0
    assert torch.all(labels[begins] == IGNORED)
    assert torch.equal(labels[~begins], blocks.ids.long()[~begins])


def test_reading_stops_at_the_token_limit(tokenizer):
    def endless():
        while True:
            yield "red and blue"

    assert len(pack(endless(), tokenizer, 8, max_tokens=40)) == 5


def test_too_little_text_is_refused(tokenizer):
    with pytest.raises(TrainDataError, match="expected at least one block of 512"):
        pack(DOCUMENTS, tokenizer, 512)


def test_every_prefix_of_a_mixture_has_the_wanted_shares():
    order = mixed_order([50, 10], 400, weights=[3.0, 1.0], seed=1)
    shares = np.cumsum(order.sources == 1) / np.arange(1, 401)
    assert np.all(np.abs(shares * np.arange(1, 401) - np.arange(1, 401) / 4) <= 1)
    for source, size in enumerate((50, 10)):
        rows = order.rows[order.sources == source]
        for start in range(0, len(rows) - size, size):  # each block once before any comes twice
            assert sorted(rows[start : start + size]) == [*range(size)]


def test_an_order_depends_on_its_seed_alone():
    one, again, other = (mixed_order([20, 30], 100, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.rows, again.rows) and np.array_equal(one.sources, again.sources)
    assert not np.array_equal(one.rows, other.rows)


def test_weights_have_to_fit_the_sources():
    blocks = Blocks(torch.zeros(2, 4, dtype=torch.int32), torch.zeros(2, 4, dtype=torch.int32))
    longer = Blocks(torch.zeros(2, 8, dtype=torch.int32), torch.zeros(2, 8, dtype=torch.int32))
    assert check_weights({"a": blocks, "b": blocks}, {"b": 1.0, "a": 3.0}) == [3.0, 1.0]
    for weights in ({"a": 1.0}, {"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 1.0, "c": 1.0}):
        with pytest.raises(TrainDataError, match="expected one above 0 for a, b"):
            check_weights({"a": blocks, "b": blocks}, weights)
    with pytest.raises(TrainDataError, match="differ in length"):
        check_weights({"a": blocks, "b": longer}, None)
    with pytest.raises(TrainDataError, match="no source"):
        check_weights({}, None)


def test_the_held_out_share_is_decided_by_content():
    texts = [f"text {number}" for number in range(2000)]
    held = [text for text in texts if is_held_out(text, 0.1)]
    assert 150 < len(held) < 250
    assert all(is_held_out(text, 0.2) for text in held)
