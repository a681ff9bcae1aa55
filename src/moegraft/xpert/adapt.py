"""Start a target from knowledge and write it as a checkpoint that transformers loads.

knowledge, target = open_knowledge("know"), read_target("config.json")
initialise_target(Start(target, Adaptation(), knowledge), "start")
AutoModelForCausalLM.from_pretrained("start")
"""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import moegraft
from moegraft.checkpoint import Checkpoint
from moegraft.checkpoint.writer import (
    Entry,
    Produced,
    plan_shards,
    shards_bytes,
    staged_output,
    write_shards,
)
from moegraft.xpert.knowledge import Knowledge
from moegraft.xpert.start import DTYPES, Start
from moegraft.xpert.start_card import start_card
from moegraft.xpert.target import Stored
from moegraft.xpert.vocabulary import save_tokenizer

PROVENANCE = "provenance.json"


def initialise_target(
    start: Start,
    out: Path | str,
    *,
    donor: Checkpoint | None = None,
    tokenizer: str | None = None,
    on_step: Callable[[int, int], None] = lambda num_done, num_tensors: None,
) -> dict[str, Any]:
    """Write the checkpoint that a target starts from; nothing is left behind when it fails.

    Tensors are made when their turn comes, so memory holds one tensor, and one layer's knowledge.

    Args:
        start: the values.
        out: a folder that does not exist or is empty.
        donor: whose tokenizer goes along, where its ids fit the target's vocabulary.
        tokenizer: folder or Hub name of another one.
        on_step: called after each tensor with the number of tensors done, and of all.

    Returns:
        The content of provenance.json.

    Raises:
        OutputError: `out` cannot be written.
        IncompatibleError, CheckpointError: as `Start.tensor`; or a tokenizer that does not fit.
    """
    target, knowledge = start.target, None if start.ffns is None else start.ffns.knowledge
    entries = [_entry(start, tensor, on_step, n) for n, tensor in enumerate(target.tensors, 1)]
    shards = plan_shards(entries)
    inputs = [one.path for one in (knowledge, donor) if one is not None]
    with staged_output(out, inputs=inputs, needed_bytes=shards_bytes(shards)) as folder:
        about = {
            "schema": 1,
            "tool": {"name": "moegraft", "version": moegraft.__version__},
            "knowledge": None if knowledge is None else _origin(knowledge),
            **start.about(),
            "tokenizer": save_tokenizer(folder, target, donor, tokenizer),
        }
        write_shards(folder, shards)
        (folder / "README.md").write_text(start_card(about), encoding="utf-8")
        text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
        (folder / PROVENANCE).write_text(text, encoding="utf-8")
        if target.model.generation_config is not None:
            target.model.generation_config.save_pretrained(folder)
        config = copy.deepcopy(target.config)
        config.dtype = getattr(torch, start.dtype)
        config.save_pretrained(folder)
    return about


def _entry(start: Start, tensor: Stored, on_step: Callable[[int, int], None], number: int) -> Entry:
    dtype = getattr(torch, start.dtype)

    def produce() -> Any:
        values = start.tensor(tensor).to(dtype).contiguous()
        on_step(number, len(start.target.tensors))
        return values.view(torch.uint8).numpy()

    nbytes = math.prod(tensor.shape) * dtype.itemsize
    sources = (Produced(nbytes, produce),)
    return Entry(tensor.name, DTYPES[start.dtype], tensor.shape, sources)


def _origin(knowledge: Knowledge) -> dict[str, Any]:
    about = knowledge.about
    experts = {
        entry["layer"]: [group["experts"] for group in entry["groups"]] for entry in about["layers"]
    }
    kept = {key: about[key] for key in ("donor", "selection", "decomposition")}
    return {**kept, "experts": experts}
