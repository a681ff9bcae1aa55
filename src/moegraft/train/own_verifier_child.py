"""The process in which a user's own verifier runs: a line of JSON in, a line out."""

import importlib
import json
import os
import sys
from typing import Any


def main(module: str, function: str) -> None:
    """Import, tell that it went well, then answer until the pipe closes."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the verifier prints goes where it does no harm

    def tell(reply: dict[str, Any]) -> None:
        answers.write(json.dumps(reply) + "\n")

    try:
        verifier = getattr(importlib.import_module(module), function)
    except BaseException as error:  # user code: whatever it raises is told
        tell({"error": _line(error)})
        return
    tell({"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        try:
            reward = verifier(question["response"], question["gold"])
            reply = {"reward": _plain(reward)}
        except Exception as error:  # user code again; Ctrl-C and exit end the process
            reply = {"error": _line(error)}
        tell(reply)


def _plain(reward: Any) -> Any:
    """A number as JSON holds it; anything else as text, to be refused."""
    if isinstance(reward, bool | int | float):
        return reward
    number = getattr(reward, "item", None)  # numpy and torch scalars
    return number() if callable(number) else repr(reward)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


if __name__ == "__main__":
    main(*sys.argv[1:])
