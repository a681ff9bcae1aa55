"""Command conditions on disk, and scores as files, for tests of compare and gate."""

import json
import sys
from pathlib import Path

import pytest

ASK = """
import hashlib, json, os, sys, time
model, fail_after = sys.argv[1], int(os.environ.get("FAIL_AFTER", "999"))
parent = os.getppid()
for place, line in enumerate(sys.stdin):
    if place == fail_after:
        sys.exit(1)
    while "HANG_AFTER" in os.environ and place == int(os.environ["HANG_AFTER"]):
        time.sleep(0.05)
        if os.getppid() != parent:
            sys.exit(1)
    item = json.loads(line)
    with open("asked.txt", "a") as log:
        log.write(f"{os.path.basename(model)} {item['item']}\\n")
    digest = hashlib.sha256(f"{os.path.basename(model)}{item['a']}".encode()).digest()
    print(json.dumps({"item": item["item"], "score": digest[0] % 2}), flush=True)
"""


@pytest.fixture
def make_command(tmp_path):
    """Write a command condition of some items: `make_command("name", num_items)`."""

    def make(name: str = "mine", num_items: int = 8) -> Path:
        folder = tmp_path / "command"
        folder.mkdir(exist_ok=True)
        (folder / "ask.py").write_text(ASK)
        docs = ({"a": place} for place in range(num_items))
        (folder / "items.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        path = folder / f"{name}.yaml"
        path.write_text(f"command: {sys.executable} ask.py {{model}}\nitems: items.jsonl\n")
        return path

    return make


@pytest.fixture
def write_scores(tmp_path):
    """Write a table of one model: `write_scores("old", {"gsm8k": [1, 0, ...]})`."""

    def write(name: str, scores: dict[str, list[float]]) -> Path:
        path = tmp_path / f"{name}.jsonl"
        rows = (
            {"item": place, "condition": condition, "score": float(score)}
            for condition, values in scores.items()
            for place, score in enumerate(values)
        )
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
