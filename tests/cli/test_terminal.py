"""What is printed where the terminal cannot show everything."""

import io
import json
import sys

from moegraft.cli.terminal import expand_home, make_printable, stdout_console, write_json


def ascii_stdout(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


def printed(stream):
    stream.flush()
    return stream.buffer.getvalue().decode("ascii")


def test_what_an_encoding_lacks_is_a_question_mark(monkeypatch):
    stream = ascii_stdout(monkeypatch)
    make_printable()
    stdout_console().print("83.3 ± 2", highlight=False)
    assert printed(stream) == "83.3 ? 2\n"


def test_data_survive_any_encoding(monkeypatch):
    stream = ascii_stdout(monkeypatch)
    write_json({"source": "späce"})
    assert json.loads(printed(stream)) == {"source": "späce"}


def test_a_closed_stdout_swallows_what_is_printed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    make_printable()
    with sys.stdout as nowhere:
        write_json({"a": 1})
    assert nowhere.name == "/dev/null"


def test_a_tilde_behind_an_equals_sign_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_home("--out=~/x") == f"--out={tmp_path}/x"
    assert expand_home("math=~/a=b") == f"math={tmp_path}/a=b"
    for whole in ("--out", "a=~b", "x~/y", "--note=a ~/b"):
        assert expand_home(whole) == whole
