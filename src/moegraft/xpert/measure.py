"""Routing counts of a live checkpoint by domain and text window, resumable."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moegraft.checkpoint import Checkpoint
from moegraft.errors import CheckpointError, IncompatibleError
from moegraft.evals.texts import Text
from moegraft.runtime.batches import batches
from moegraft.runtime.hooks import observed, routers
from moegraft.runtime.probe import RoutingCounts, RoutingProfile
from moegraft.xpert.counts import RoutingTable
from moegraft.xpert.experts import donor_fingerprint, find_shared
from moegraft.xpert.windows import FILE, WindowStore


@torch.no_grad()
def count_windows(
    host: Any,
    domains: Mapping[str, Sequence[Text]],
    out: Path,
    *,
    window: int = 1024,
    batch_tokens: int = 4096,
    on_step: Callable[[int, int], None] = lambda num_done, num_tokens: None,
) -> RoutingTable:
    """Run a checkpoint over texts and count its routing window by window; forward passes only.

    Each window is written to `out/windows.jsonl` when it is finished, and the same call goes on
    behind the last one. Memory does not grow with the number of tokens. No logits are computed,
    padding does not count.

    Args:
        host: a `runtime.Host`.
        domains: texts by domain, at least one token each.
        out: a folder.
        window: tokens that make a window; short texts share one, longer ones are one of their own.
        batch_tokens: of one forward pass, padding included.
        on_step: called after each window with the number of tokens done, and of all.

    Raises:
        IncompatibleError: the model has no routers.
        CheckpointError: routing weights are no finite numbers.
        RunError: `out` holds the counts of something else.
        OutputError: `out` cannot be written.
    """
    family = host.checkpoint.family
    layers = list(routers(host.model, family))
    groups = {name: pack_windows(texts, window) for name, texts in domains.items()}
    store = WindowStore(out / FILE, _about(host, layers, groups))
    total = sum(len(text.ids) for texts in domains.values() for text in texts)
    num_done = 0
    for domain, windows in groups.items():
        for number, texts in enumerate(windows):
            if (domain, number) not in store.done:
                profile = _count(host, texts, batch_tokens)
                if profile is not None:
                    store.add({"domain": domain, "window": number, **_row(profile)})
            num_done += sum(len(text.ids) for text in texts)
            on_step(num_done, total)
    return store.table()


def pack_windows(texts: Sequence[Text], window: int) -> list[list[Text]]:
    """Neighbouring texts in groups of at most `window` tokens."""
    groups: list[list[Text]] = []
    room = 0
    for text in texts:
        if len(text.ids) > room or not groups:
            groups.append([])
            room = window
        groups[-1].append(text)
        room -= len(text.ids)
    return groups


def _count(host: Any, texts: Sequence[Text], batch_tokens: int) -> RoutingProfile | None:
    """The routing of one window; None if none of its tokens counts."""
    if all(text.first >= len(text.ids) for text in texts):
        return None
    decoder = host.model.get_decoder()
    device = host.model.get_input_embeddings().weight.device
    counts = RoutingCounts()
    ids, firsts = [text.ids for text in texts], [text.first for text in texts]
    for batch in batches(ids, batch_tokens, device, firsts):
        with observed(host.model, host.checkpoint.family, counts.observer("window"), batch.counted):
            decoder(batch.ids, attention_mask=batch.mask.long(), use_cache=False)
    profile = counts.profile()
    if not np.isfinite(profile.mass).all():
        raise CheckpointError(
            f"{host.checkpoint.source}: routing weights of a text are no finite numbers; expected "
            "a checkpoint without NaN or infinite weights"
        )
    return profile


def _row(profile: RoutingProfile) -> dict[str, Any]:
    return {
        "num_tokens": int(profile.num_tokens[0]),
        "counts": profile.counts[0].tolist(),
        "mass": [[float(f"{value:.7g}") for value in row] for row in profile.mass[0]],
    }


def _about(host: Any, layers: list[int], groups: Mapping[str, list[list[Text]]]) -> dict[str, Any]:
    checkpoint: Checkpoint = host.checkpoint
    shared = {find_shared(checkpoint, layer) for layer in layers}
    if len(shared) > 1:
        raise IncompatibleError(
            f"{checkpoint.source}: layers differ in their shared experts: {sorted(shared)}"
        )
    texts = hashlib.sha256()
    for domain, windows in groups.items():
        texts.update(f"{domain}\n".encode())
        for number, window in enumerate(windows):
            for text in window:
                texts.update(f"{number} {text.first} {text.ids}\n".encode())
    return {
        "checkpoint": checkpoint.source,
        "fingerprint": donor_fingerprint(checkpoint),
        "dtype": str(host.model.dtype).removeprefix("torch."),
        "layers": layers,
        "top_k": checkpoint.family.top_k(checkpoint.config),
        "num_shared": shared.pop(),
        "domains": list(groups),
        "texts": texts.hexdigest(),
    }
