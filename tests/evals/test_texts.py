import json

import pytest

from moegraft.errors import EvalDataError
from moegraft.evals.harness import load_condition
from moegraft.evals.texts import condition_texts, file_texts, read_domains, text_files
from tiny_sweep import byte_tokenizer

TOKENIZER = byte_tokenizer()


def test_a_long_text_is_cut_into_windows_up_to_the_wanted_tokens(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("abcdefghij" * 10)
    texts = file_texts(path, TOKENIZER, window=30, max_tokens=70)
    assert [len(text.ids) for text in texts] == [30, 30, 10]
    ids = [i for text in texts for i in text.ids]
    assert TOKENIZER.decode(ids) == "abcdefghij" * 7
    assert {(text.domain, text.answer, text.first, text.cluster) for text in texts} == {
        ("long", 1, 0, "long:0")
    }


def test_records_are_texts_of_their_own(tmp_path):
    path = tmp_path / "records.jsonl"
    rows = [{"text": "one", "title": "A"}, {"text": "two", "title": "B"}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    texts = file_texts(path, TOKENIZER, domain="d", fields=("title", "text"))
    assert [TOKENIZER.decode(text.ids) for text in texts] == ["A\none", "B\ntwo"]
    assert [text.name for text in texts] == ["d:1:0", "d:2:0"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json\n", r":1: expected one JSON record per line"),
        ("[1]\n", r":1: expected a record, got list"),
        ('{"body": "x", "n": 1}\n', r"no text in field 'text'; fields with text: body"),
        ("\n", r"no text found"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(EvalDataError, match=message):
        file_texts(path, TOKENIZER)


def test_a_binary_file_is_refused(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EvalDataError, match="cannot be read"):
        file_texts(path, TOKENIZER)


def test_a_data_set_on_the_hub_is_streamed_as_far_as_it_is_needed(tmp_path, monkeypatch):
    # Without a network `datasets` finds OWNER/NAME as a folder below the working directory.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "laws").mkdir(parents=True)
    rows = [{"text": f"paragraph {n}", "title": "A"} for n in range(50)]
    lines = [*map(json.dumps, rows), json.dumps({"title": "no text"})]
    (tmp_path / "owner" / "laws" / "train.jsonl").write_text("\n".join(lines) + "\n")
    found = read_domains(["hub:owner/laws", "mine=hub:owner/laws"], TOKENIZER, max_tokens=40)
    assert list(found) == ["laws", "mine"]
    assert [TOKENIZER.decode(text.ids) for text in found["laws"][:2]] == [
        "paragraph 0",
        "paragraph 1",
    ]
    assert sum(len(text.ids) for text in found["mine"]) == 40
    with pytest.raises(EvalDataError, match=r"hub:owner/laws: record 51: no text in field 'text'"):
        read_domains(["hub:owner/laws"], TOKENIZER)
    with pytest.raises(EvalDataError, match=r"hub:owner/none: cannot be read: .*owner/none"):
        read_domains(["hub:owner/none"], TOKENIZER)
    with pytest.raises(EvalDataError, match=r"hub:owner/laws:de: cannot be read: .*de"):
        read_domains(["hub:owner/laws:de"], TOKENIZER)


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}', encoding="utf-8-sig")
    (tmp_path / "b.txt").write_text("one", encoding="utf-8-sig")
    for texts in read_domains([str(tmp_path)], TOKENIZER).values():
        assert [TOKENIZER.decode(text.ids) for text in texts] == ["one"]


@pytest.mark.parametrize("source", ["", "name=", "hub:", "name=hub:"])
def test_a_source_that_names_nothing_is_refused(source):
    with pytest.raises(EvalDataError, match="names no texts; expected a path, a task or hub:"):
        read_domains([source], TOKENIZER)


def test_a_name_that_is_neither_a_path_nor_a_task_is_told_as_both(tmp_path):
    with pytest.raises(
        EvalDataError, match=r"^corpus: no such file or folder, and no task 'corpus'"
    ):
        read_domains(["mine=corpus"], TOKENIZER, include=[tmp_path])


def test_a_path_below_the_home_folder_is_found_behind_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notes.txt").write_text("some words to read")
    assert list(read_domains(["mine=~/notes.txt"], TOKENIZER)) == ["mine"]


def test_a_folder_stands_for_its_text_files(tmp_path):
    with pytest.raises(EvalDataError, match="holds no text files"):
        text_files(str(tmp_path))
    for name in ("b.txt", "a.jsonl", "c.bin"):
        (tmp_path / name).write_text('{"text": "words"}\n')
    assert [path.name for path in text_files(str(tmp_path))] == ["a.jsonl", "b.txt"]
    found = read_domains([f"mine={tmp_path}"], TOKENIZER)
    assert list(found) == ["mine/a", "mine/b"]
    assert {text.domain for text in found["mine/a"]} == {"mine/a"}


def test_prompts_are_read_with_their_gold_answer_and_share_their_beginning_once(tiny_tasks):
    condition = load_condition("tiny_choose", tokenizer=TOKENIZER, include=[tiny_tasks])
    texts = condition_texts(condition, 5)
    assert len(texts) == 5
    for text, item in zip(texts, condition.items, strict=False):
        pair = item.gold_pair
        assert pair is not None
        assert text.ids == (*pair.context, *pair.continuation)
        assert text.ids[text.answer :] == pair.continuation
        assert text.name == item.hash
    shared = texts[1].first
    assert [text.first for text in texts] == [0, *[shared] * 4]
    heads = {text.ids[:shared] for text in texts}
    assert len(heads) == 1
    assert len({text.ids[: shared + 1] for text in texts}) > 1


def test_tasks_are_cut_to_the_wanted_tokens(tiny_tasks):
    (texts,) = read_domains(
        ["tiny_choose"], TOKENIZER, max_tokens=90, include=[tiny_tasks], chat_template=True
    ).values()
    assert sum(len(text.ids) - text.first for text in texts) <= 90
    assert len(texts) > 1
