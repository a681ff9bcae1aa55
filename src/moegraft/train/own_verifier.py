"""Your own verifier, in a process of its own that can be stopped when it hangs."""

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

from moegraft.errors import RecipeError
from moegraft.train.verdict import Verdict

_IMPORT_SECONDS = 120.0


class OwnVerifier:
    """`function(response, gold)`, a number or a truth value, called in another process.

    What it raises, and a call past the time limit, become a failed verdict; after a hang or a
    crash the next call starts a new process. Modules are found on `PYTHONPATH` and in the current
    folder. It is your code: it runs with your rights.
    """

    def __init__(self, name: str, seconds: float) -> None:
        """Start it.

        Args:
            name: `MODULE:FUNCTION`.
            seconds: that a call may take.

        Raises:
            RecipeError: there is no such function, or importing it fails.
        """
        self._name = name
        self._seconds = seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._start()

    def __call__(self, response: str, gold: str) -> Verdict:
        """The verdict on one response."""
        if self._child is None:
            self._start()
        reply = self._ask({"response": response, "gold": gold}, self._seconds)
        if reply is None:
            died = self._child is not None and self._child.poll() is not None
            self.close()
            why = "ended its process" if died else f"took more than {self._seconds:g} s"
            return Verdict(0.0, f"{self._name} {why}")
        if "error" in reply:
            return Verdict(0.0, f"{self._name}: {reply['error']}")
        reward = reply["reward"]
        if not isinstance(reward, int | float) or not math.isfinite(reward):
            return Verdict(0.0, f"{self._name} returned {reward!r:.60}, expected a finite number")
        return Verdict(float(reward))

    def close(self) -> None:
        """End the process."""
        child, self._child, self._rest = self._child, None, b""
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _start(self) -> None:
        module, _, function = self._name.partition(":")
        self._child = subprocess.Popen(
            [sys.executable, "-m", "moegraft.train.own_verifier_child", module, function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        reply = self._read(_IMPORT_SECONDS)
        if reply is None or "error" in reply:
            self.close()
            why = "its import did not end" if reply is None else reply["error"]
            raise RecipeError(
                f"verifier {self._name}: {why}; expected MODULE:FUNCTION, found from here or on "
                "PYTHONPATH"
            )

    def _ask(self, question: dict[str, str], seconds: float) -> dict[str, Any] | None:
        assert self._child is not None and self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(question).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            return None
        return self._read(seconds)

    def _read(self, seconds: float) -> dict[str, Any] | None:
        """The next line, or None when the process has ended or does not answer in time."""
        assert self._child is not None and self._child.stdout is not None
        pipe, until = self._child.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._rest:
            ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
            chunk = os.read(pipe, 1 << 16) if ready else b""
            if not chunk:
                if ready:  # the end of the pipe
                    self._child.wait()
                return None
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)
