import json

import pytest

from moegraft.errors import TrainDataError
from moegraft.train.records import read_records

RECORDS = [{"text": "one"}, {"text": "zwölf"}]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.jsonl", LINES.encode()),
        ("windows.jsonl", b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode()),
        ("blank.jsonl", LINES.replace("\n", "\n \n").encode()),
        ("list.json", json.dumps(RECORDS).encode()),
        ("indented.json", b"\xef\xbb\xbf\n  " + json.dumps(RECORDS, indent=1).encode()),
    ],
)
def test_records_are_read_whatever_wrote_them(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert [*read_records(tmp_path / name)] == RECORDS


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b'{"text" "x"}', r"line 3: cannot be read: Expecting ':' delimiter \(character 9\)"),
        (b'{"text": "\xe9"}', "line 3: cannot be read: 'utf-8' codec can't decode byte 0xe9"),
        (b'{"text": "\\ud800"}', "line 3: holds half a surrogate pair"),
        (b"[1]", "line 3: expected a JSON object, got list"),
    ],
)
def test_a_bad_line_is_named_by_its_number_in_the_file(bad, message, tmp_path):
    (tmp_path / "d.jsonl").write_bytes(LINES.encode() + bad + b"\n" + LINES.encode())
    found = read_records(tmp_path / "d.jsonl")
    assert [next(found), next(found)] == RECORDS
    with pytest.raises(TrainDataError, match=message):
        next(found)
