import json
import os
import time

import pytest

from moegraft.train.programs import Limits, find_program, run_program

ADD = json.dumps({"tests": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]})
ECHO = json.dumps({"cases": [{"stdin": "1 2\n", "stdout": "3"}, {"stdin": "4 5", "stdout": "9"}]})
READ = "a, b = map(int, input().split())\nprint(a + b)"


def _reward(program, gold=ADD, **limits):
    return run_program(program, gold, Limits(**limits)).reward


def test_a_program_passes_when_all_of_its_tests_do():
    assert _reward("def add(a, b):\n    return a + b") == 1.0
    assert _reward("def add(a, b):\n    return 3") == 0.0
    assert _reward("def add(a, b:") == 0.0


def test_a_program_may_read_and_print():
    assert _reward(READ, ECHO) == 1.0
    assert _reward("print(3)", ECHO) == 0.0
    assert _reward(f"{READ}\nraise SystemExit", ECHO) == 1.0
    assert _reward(f"{READ}\n1 / 0", ECHO) == 0.0


def test_the_last_fenced_block_is_the_program():
    assert find_program("First\n```\nno\n```\nthen\n```python\nyes\n```\nDone.") == "yes\n"
    assert find_program("x = 1") == "x = 1"


@pytest.mark.parametrize("leave", ["import os; os._exit(0)", "raise SystemExit", "exit()"])
def test_leaving_before_the_tests_is_not_passing(leave):
    assert _reward(leave) == 0.0


def test_a_program_that_never_ends_is_stopped_and_recorded():
    began = time.monotonic()
    verdict = run_program("while True: pass", ADD, Limits(seconds=0.5))
    assert time.monotonic() - began < 10
    assert verdict == (0.0, "the program ran for more than 0.5 s")


def test_a_program_cannot_take_all_memory():
    assert _reward("x = bytearray(4 << 30)\ndef add(a, b): return a + b") == 0.0
    assert _reward("x = bytearray(4 << 20)\ndef add(a, b): return a + b") == 1.0


def test_a_program_cannot_fill_the_disk():
    flood = "import sys\nfor _ in range(1 << 16): sys.stdout.write('x' * 4096)"
    assert _reward(f"{flood}\ndef add(a, b): return a + b") == 0.0


@pytest.mark.parametrize(
    "escape",
    [
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('127.0.0.1', 1))",
        "import os; os.system('true')",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import ctypes; ctypes.CDLL(None)",
    ],
)
def test_a_program_opens_no_socket_and_starts_no_process(escape):
    tried = f"try:\n    {escape}\nexcept PermissionError as error:\n    print(error)"
    gold = json.dumps({"cases": [{"stdin": "", "stdout": "is not allowed here"}]})
    found = run_program(tried.replace("print(error)", "print(*str(error).split()[-4:])"), gold)
    assert found.reward == 1.0


def test_a_program_sees_neither_the_environment_nor_the_tests(monkeypatch):
    monkeypatch.setenv("SECRET", "here")
    look = "import os\nassert 'SECRET' not in os.environ and not os.listdir()\n"
    assert _reward(f"{look}def add(a, b): return a + b") == 1.0
    assert "SECRET" in os.environ
