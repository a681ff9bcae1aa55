"""What a result depends on: the key of every row, and a sentence about what changed."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moegraft.errors import RunError
from moegraft.evals.store import cell_path, write_atomically

Ingredients = Mapping[str, Any]
"""All that decides the results of a cell besides its prompts, JSON-ready: content hashes of the
components, tokenizer, generation settings, engine and its versions, dtype, device."""

ENGINE = ("moegraft", "torch", "transformers", "lm_eval")
"""Packages whose versions are part of every result key."""


def cell_key(ingredients: Ingredients) -> str:
    """32 hex digits over the ingredients; equal for configurations that cannot differ."""
    return _digest(ingredients)[:32]


def row_key(cell: str, prompt_hash: str) -> str:
    """16 hex digits: the key of one result, from its cell's key and the hash of its prompt."""
    return _digest([cell, prompt_hash])[:16]


def engine_ingredients(host: Any) -> dict[str, Any]:
    """What results depend on besides weights, tokenizer and task: engine, dtype, device, stops."""
    config = host.model.config
    return {
        "engine": {name: version(name) for name in ENGINE},
        "experts_implementation": getattr(config, "_experts_implementation", None),
        "attention_implementation": getattr(config, "_attn_implementation", None),
        "dtype": str(host.dtype).removeprefix("torch."),
        "device": "+".join(sorted({weight.device.type for weight in host.model.parameters()})),
        "eos_ids": sorted(host.eos_ids),
    }


def tokenizer_hash(files: Sequence[Path]) -> str:
    """32 hex digits over the names and bytes of a tokenizer's files."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def remember_ingredients(
    run_dir: Path, configuration: str, condition: str, ingredients: Ingredients
) -> None:
    """Keep the ingredients of a cell beside its results; compare them with those of before.

    Raises:
        RunError: the results on disk were made with other ingredients; the message names them.
    """
    cell_path(run_dir, configuration, condition)  # refuses names that leave the folder
    path = run_dir / "state" / "keys" / configuration / f"{condition}.json"
    new = json.loads(json.dumps(ingredients, sort_keys=True))
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        write_atomically(path, json.dumps(new, indent=1, sort_keys=True).encode() + b"\n")
        return
    except ValueError:
        raise RunError(f"{path}: damaged; restore it, or delete it and the results") from None
    changed = list(_changes(old, new))
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise RunError(
            f"{run_dir}: {configuration}, {condition}: results on disk were made with other "
            f"ingredients: {'; '.join(changed[:3])}{more}. Restore them, or choose another --out"
        )


def check_row(row: Mapping[str, Any], cell: str, prompt_hash: str, where: str) -> None:
    """Refuse a stored row that was made from another prompt, or by another cell.

    Raises:
        RunError: naming the item and what changed.
    """
    if row.get("key") == row_key(cell, prompt_hash):
        return
    what = "another prompt" if row.get("prompt") != prompt_hash else "other settings"
    raise RunError(
        f"{where}: item {row.get('item')} was scored with {what} than this run's; the task, its "
        "examples or its data changed. Restore them, or choose another --out"
    )


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _changes(old: Any, new: Any, place: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _changes(old.get(name), new.get(name), f"{place}.{name}" if place else name)
    elif old != new:
        yield f"{place} was {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:20]}..."
