"""What a run directory says about how it was made: env.json, the prompts, fingerprints."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import moegraft
from moegraft.errors import RunError
from moegraft.evals.condition import Condition
from moegraft.evals.store import write_atomically, write_rows

SCHEMA = 1
REPEAT = "delete it and repeat the command that made the run"
"""The way out where env.json cannot be read: it is written anew, and nothing is scored twice."""
_PACKAGES = ("torch", "transformers", "lm_eval", "datasets", "tokenizers", "safetensors", "numpy")


def environment() -> dict[str, Any]:
    """Versions of everything that computes, and the commit of a source checkout."""
    versions = {"python": platform.python_version(), "moegraft": moegraft.__version__}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"schema": SCHEMA, "versions": versions, "git_commit": _git_commit()}


def write_env(run_dir: Path, env: Mapping[str, Any]) -> None:
    """Write env.json, if its content changed."""
    path = run_dir / "env.json"
    content = (json.dumps(env, indent=1, ensure_ascii=False) + "\n").encode()
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)


def read_env(run_dir: Path) -> dict[str, Any]:
    """env.json. Raises RunError when it is missing or damaged."""
    try:
        return json.loads((run_dir / "env.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunError(f"{run_dir}/env.json is missing or damaged; {REPEAT}") from None


def write_prompts(run_dir: Path, conditions: Sequence[Condition]) -> None:
    """Write what was asked, one row per item, to prompts/<condition>.jsonl."""
    for condition in conditions:
        rows = (
            {
                "item": item.hash,
                "doc": json.loads(json.dumps(item.doc, default=str)),
                "prompt": item.prompt,
                "gold": item.gold,
            }
            for item in condition.items
        )
        write_rows(run_dir / "prompts" / f"{condition.name}.jsonl", rows)


def fingerprint_checkpoint(checkpoint: Any, hashes: Mapping[Any, str]) -> dict[str, Any]:
    """What tells one checkpoint from another, for env.json.

    Args:
        checkpoint: a `Checkpoint`.
        hashes: content hashes of its parts.
    """
    headers = json.dumps(checkpoint.header_hashes(), sort_keys=True).encode()
    content = json.dumps(sorted((str(unit), digest) for unit, digest in hashes.items())).encode()
    return {
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "headers": hashlib.sha256(headers).hexdigest(),
        "content": hashlib.sha256(content).hexdigest(),
        "num_bytes": checkpoint.num_bytes,
    }


def device_name(host: Any) -> str:
    """The device of a host in words, for env.json."""
    import torch

    devices = dict.fromkeys(weight.device for weight in host.model.parameters())
    return " and ".join(
        f"{device} ({torch.cuda.get_device_name(device)})"
        if device.type == "cuda"
        else f"{device} ({torch.get_num_threads()} threads)"
        for device in devices
    )


def _git_commit() -> str | None:
    """The commit that moegraft runs from, `-dirty` when changed; None for an installed package."""
    root = Path(moegraft.__file__).parents[2]
    return commit_of(root) if (root / ".git").exists() else None


def commit_of(checkout: Path) -> str | None:
    """The commit of a checkout, `-dirty` when tracked files have changed; None without git.

    Nothing in the checkout is written or locked (`git describe --dirty` locks the index).
    """
    git = ["git", "--no-optional-locks", "-C", str(checkout)]
    asked = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    try:
        commit, changes = (
            subprocess.run([*git, *one], capture_output=True, text=True, timeout=20, check=True)
            for one in asked
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("-dirty" if changes.stdout else "")
