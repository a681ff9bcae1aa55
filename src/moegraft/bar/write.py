"""Write a model folder from planned tensors: shards, config, the anchor's side files, a record."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from moegraft.checkpoint import Checkpoint
from moegraft.checkpoint.folder import CONFIG
from moegraft.checkpoint.writer import (
    Entry,
    plan_shards,
    shards_bytes,
    staged_output,
    write_shards,
)
from moegraft.transfer.apply import side_files

T = TypeVar("T")


def write_model(
    out: str | Path,
    entries: Sequence[Entry],
    config: Mapping[str, Any],
    anchor: Checkpoint,
    *,
    inputs: Sequence[Path],
    tokenizer: Any = None,
    finish: Callable[[Path], T],
    on_bytes: Callable[[int], None] | None = None,
) -> T:
    """Write the folder `out`; it appears under its name only when it is complete.

    Args:
        out: the folder to make.
        entries: its tensors.
        config: content of config.json.
        anchor: whose tokenizer, generation config and licence files it gets.
        inputs: folders that are read.
        tokenizer: saved in the place of the anchor's, if given.
        finish: called with the folder before it gets its name, to add a record.
        on_bytes: progress, called with the number of bytes after each step.

    Returns:
        What `finish` returns.

    Raises:
        OutputError: `out` cannot be used, or the disk is full.
    """
    shards = plan_shards(entries)
    carried = [file for file in side_files(anchor.path)[0] if file.name not in (CONFIG, *_RECORDS)]
    needed = shards_bytes(shards) + sum(file.stat().st_size for file in carried) + (1 << 20)
    with staged_output(out, inputs=inputs, needed_bytes=needed) as folder:
        write_shards(folder, shards, on_bytes=on_bytes)
        for file in carried:
            target = folder / file.relative_to(anchor.path)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        text = json.dumps(dict(config), indent=2, sort_keys=True, default=str)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        return finish(folder)


_RECORDS = (
    "branch.json",
    "merge.json",
    "divergence.json",
    "route.json",
    "routed.json",
    "heal.json",
)
"""Of an earlier step; they would not be true of the new model."""
