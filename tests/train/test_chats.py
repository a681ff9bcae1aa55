import json

import pytest
import torch

from moegraft.errors import TrainDataError
from moegraft.train.chats import encode_chat, pack_chats, read_chats
from moegraft.train.text import IGNORED
from tiny_sweep import CHAT, byte_tokenizer


def _chat(*turns):
    roles = ("user", "assistant") * len(turns)
    return [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]


CHATS = [_chat("one?", "a"), _chat("two?", "b", "more?", "cc"), _chat("three?", "ddd")]


@pytest.fixture
def tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def _write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_every_answer_of_a_chat_is_marked_and_nothing_else(tokenizer):
    ids, answers = encode_chat(tokenizer, CHATS[1])
    marked = [i for i, answer in zip(ids, answers, strict=True) if answer]
    assert tokenizer.decode(marked) == "b\ncc\n"
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(CHATS[1], tokenize=False)


def test_answers_that_the_template_changes_later_are_not_trained_on(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] + ':' }}"
        "{{ m['content'] if loop.last or m['role'] == 'user' else m['content'].upper() }};"
        "{% endfor %}{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
    )
    ids, answers = encode_chat(tokenizer, CHATS[1])
    assert tokenizer.decode([i for i, a in zip(ids, answers, strict=True) if a]) == "cc;"


def test_packed_chats_stay_whole_and_apart(tokenizer):
    lengths = [len(encode_chat(tokenizer, chat)[0]) for chat in CHATS]
    blocks = pack_chats(CHATS, tokenizer, max(lengths) + 3)
    starts = (blocks.positions == 0) & (blocks.ids != tokenizer.pad_token_id)
    assert int(starts.sum()) == len(CHATS)
    texts = []
    for ids, answers in zip(blocks.ids, blocks.answers, strict=True):
        kept = ids[ids != tokenizer.pad_token_id]
        texts.append(tokenizer.decode(kept))
        assert not answers[ids == tokenizer.pad_token_id].any()
    rendered = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in CHATS]
    assert sorted("".join(texts)) == sorted("".join(rendered))
    assert all(any(text in one for one in texts) for text in rendered)
    labels = blocks.labels(range(len(blocks)))
    assert torch.equal(labels != IGNORED, blocks.answers)


def test_short_chats_share_a_block(tokenizer):
    blocks = pack_chats(CHATS, tokenizer, 256)
    assert len(blocks) == 1
    first = [int(i) for i in (blocks.positions[0] == 0).nonzero().flatten()]
    assert len(first) == len(CHATS) + 1  # and the padding


def test_long_chats_are_cut_and_those_without_an_answer_left_out(tokenizer, caplog):
    long = [_chat("word " * 30, "late"), _chat("x?", "word " * 30), CHATS[0]]
    blocks = pack_chats(long, tokenizer, 48)
    assert "2 chats cut to 48 tokens; 1 left out" in caplog.text
    assert "late" not in "".join(tokenizer.batch_decode(blocks.ids))
    with pytest.raises(TrainDataError, match="no chat has an answer within 48 tokens"):
        pack_chats(long[:1], tokenizer, 48)


def test_chats_come_from_messages_or_from_prompts_and_answers(tmp_path):
    records = [
        {"messages": CHATS[0]},
        {"prompt": "one?", "completion": "a"},
        {"prompt": CHATS[0][:1], "response": CHATS[0][1:]},
        {"prompt": "one?", "chosen": "a", "rejected": "b"},
    ]
    assert [*read_chats(_write(tmp_path / "a.jsonl", records))] == [CHATS[0]] * 4


def test_chats_come_from_parquet_and_folders(tmp_path):
    from datasets import Dataset

    Dataset.from_list([{"messages": chat} for chat in CHATS[:2]]).to_parquet(tmp_path / "b.parquet")
    _write(tmp_path / "c.jsonl", [{"messages": CHATS[2]}])
    assert [*read_chats(tmp_path)] == CHATS


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"text": "a"}', "record 1 is no chat with an answer; .* got keys text"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "record 1 is no chat with an answer"),
        ("[1]", "line 1: expected a JSON object, got list"),
        ('{"messages": ', "cannot be read: Expecting value"),
    ],
)
def test_what_is_no_chat_is_named(tmp_path, lines, message):
    file = tmp_path / "a.jsonl"
    file.write_text(lines)
    with pytest.raises(TrainDataError, match=message):
        next(read_chats(file))


def test_a_template_that_refuses_a_chat_is_told(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('only one turn') }}"
    with pytest.raises(TrainDataError, match="does not take a chat: only one turn"):
        encode_chat(tokenizer, CHATS[0])
    tokenizer.chat_template = None
    with pytest.raises(TrainDataError, match="does not take a chat"):
        encode_chat(tokenizer, CHATS[0])


def test_a_chat_that_the_template_refuses_is_named_by_its_number(tokenizer):
    wrong = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": 5}]
    with pytest.raises(TrainDataError, match="chat 3: the chat template does not take a chat"):
        pack_chats([*CHATS[:2], wrong], tokenizer, 64)


def test_an_opening_turn_of_the_assistant_is_no_answer(tokenizer):
    opening = [{"role": "assistant", "content": "hello"}, *CHATS[0]]
    ids, answers = encode_chat(tokenizer, opening)
    assert tokenizer.decode([i for i, a in zip(ids, answers, strict=True) if a]) == "a\n"


def test_a_tokenizer_without_a_token_to_pad_with_is_refused(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(TrainDataError, match="neither a padding nor an end-of-text token"):
        pack_chats(CHATS, tokenizer, 64)
