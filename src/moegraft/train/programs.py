"""Programs: run what a response wrote against its tests, with limits and without a network.

A gold answer is a JSON object with one of

* `tests`: Python statements that run after the program and raise where it is wrong;
* `cases`: `{"stdin": ..., "stdout": ...}` pairs; the program runs once for each.

The program is the last fenced block of the response, or the whole of it. It runs with the
standard library only, in a process and an empty folder of its own, under limits of time, memory
and file size; sockets and child processes are refused. Where the system permits it (`unshare`,
Linux) the process also has a network namespace without any interface. That keeps mistakes of a
model in check, not an attacker: files that the user can read, the program can read. Run models
that you do not trust inside a container.
"""

import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moegraft.train.verdict import Verdict

_FENCED = re.compile(r"```[^\n]*\n(.*?)```", re.DOTALL)
_MOST_OUTPUT_BYTES = 1 << 20

_CHILD = """
import json, os, sys
with open("job.json") as file:
    job = json.load(file)
os.remove("job.json")
try:
    import resource
except ImportError:
    pass
else:
    for name, limit in job["limits"].items():
        try:
            resource.setrlimit(getattr(resource, name), (limit, limit))
        except (ValueError, OSError, AttributeError):
            pass

def refuse(event, _arguments, refused=tuple(job["refused"])):
    if event.startswith(refused):
        raise PermissionError(event + " is not allowed here")

def run(job, write=os.write):
    scope = {"__name__": "__main__"}
    for number, text in enumerate([job["program"], *job["tests"]]):
        exec(compile(text, "test" if number else "program", "exec"), scope)
    sys.stdout.flush()
    write(2, job["passed"].encode())

sys.addaudithook(refuse)
run(job)
"""
_REFUSED = (
    *("socket.", "subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty"),
    *("os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn", "ctypes."),
)
"""Audit events that end a program: what opens a socket, or gets out of this process."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run of a program, or one call of your own verifier, may take."""

    seconds: float = 5.0
    memory_bytes: int = 1 << 30
    """Address space of a program."""

    def __post_init__(self) -> None:
        assert self.seconds > 0 and self.memory_bytes > 0


_LIMITS = Limits()


def run_program(response: str, gold: str, limits: Limits = _LIMITS) -> Verdict:
    """1 where the program in `response` passes every test of `gold`, else 0.

    The paper rewards a pass rate of at least 0.99, which is every test of fewer than a hundred. A
    program that runs past the time limit is recorded as a failure as well.

    Raises:
        ValueError: `gold` is not as the module says.
    """
    wanted = parse_tests(gold)
    program = find_program(response)
    if "tests" in wanted:
        ended = _run(program, wanted["tests"], "", limits)
        return Verdict(float(ended.passed), ended.failure)
    for case in wanted["cases"]:
        ended = _run(program, [], case["stdin"], limits)
        if ended.failure or not ended.passed or ended.output.split() != case["stdout"].split():
            return Verdict(0.0, ended.failure)
    return Verdict(1.0)


def find_program(response: str) -> str:
    """The last fenced block of `response`, or all of it."""
    blocks = _FENCED.findall(response)
    return blocks[-1] if blocks else response


def parse_tests(gold: str) -> dict[str, Any]:
    """Read a gold answer. Raises ValueError when it is not as the module says."""
    try:
        content = json.loads(gold)
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from None
    if not isinstance(content, dict) or set(content) not in ({"tests"}, {"cases"}):
        raise ValueError("expected a JSON object with `tests` or `cases`")
    (found,) = content.values()
    if not isinstance(found, list) or not found:
        raise ValueError("expected a list of at least one test")
    for test in found:
        is_case = isinstance(test, dict) and set(test) == {"stdin", "stdout"}
        if not (isinstance(test, str) if "tests" in content else is_case):
            raise ValueError(f"expected statements under `tests`, pairs under `cases`: {test!r}")
    return content


@dataclass(frozen=True, slots=True)
class _Ended:
    passed: bool
    output: str
    failure: str | None = None


def _run(program: str, tests: list[str], stdin: str, limits: Limits) -> _Ended:
    """Run once; `passed` tells that the program and all `tests` ran to their end."""
    passed = secrets.token_hex(16)  # so that leaving early cannot look like passing
    job = {
        "program": program,
        "tests": tests,
        "passed": passed,
        "refused": _REFUSED,
        "limits": {
            "RLIMIT_CPU": int(limits.seconds) + 1,
            "RLIMIT_AS": limits.memory_bytes,
            "RLIMIT_FSIZE": _MOST_OUTPUT_BYTES,
            "RLIMIT_CORE": 0,
        },
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        inside = folder / "inside"
        inside.mkdir()
        (inside / "job.json").write_text(json.dumps(job), encoding="utf-8")
        (folder / "stdin").write_text(stdin, encoding="utf-8")
        in_time = _wait(folder, inside, limits.seconds)
        output = (folder / "stdout").read_text(encoding="utf-8", errors="replace")
        errors = (folder / "stderr").read_text(encoding="utf-8", errors="replace")
    if not in_time:
        return _Ended(False, output, f"the program ran for more than {limits.seconds:g} s")
    # A program that reads and prints may leave early of its own accord.
    return _Ended(errors.endswith(passed) or (not tests and not errors), output)


def _wait(folder: Path, inside: Path, seconds: float) -> bool:
    """Start the child and wait; whether it ended in time. Nothing that it started survives."""
    command = [*_without_network(), sys.executable, "-I", "-S", "-c", _CHILD]
    with (
        (folder / "stdin").open("rb") as stdin,
        (folder / "stdout").open("wb") as stdout,
        (folder / "stderr").open("wb") as stderr,
        subprocess.Popen(
            command,
            cwd=inside,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        ) as child,
    ):
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    return True


@functools.cache
def _without_network() -> tuple[str, ...]:
    """The command prefix that leaves the network behind; empty where the system forbids it."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    prefix = (unshare, "--map-root-user", "--net")
    tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return prefix if tried.returncode == 0 else ()
