"""How far a branch is from its anchor before any training: logits on probe text."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moegraft.checkpoint import Checkpoint
from moegraft.errors import BranchError
from moegraft.runtime.batches import batches
from moegraft.runtime.load import from_pretrained
from moegraft.runtime.tokens import load_tokenizer

PROBES = (
    "The river rose after two days of rain, and the lower road was closed until noon.",
    "Q: A box holds 12 pencils. How many pencils are in 7 boxes?\nA: 12 * 7 = 84",
    "def total(values):\n    return sum(value for value in values if value > 0)",
    "Please write a short, polite reply that declines the invitation for Friday.",
)
"""Texts on which anchor and branch are compared when none are given."""

TOLERANCE = 1e-4
"""Largest difference of a float32 logit, in units of the largest logit, that rounding explains:
weighted experts are summed in another order than one FFN."""


def probe_ids(
    checkpoint: Checkpoint, texts: Sequence[str], max_tokens: int = 256
) -> list[list[int]]:
    """Token ids of the texts; without a tokenizer, fixed arbitrary ids."""
    tokenizer = load_tokenizer(checkpoint)
    if tokenizer is not None:
        return [tokenizer(text)["input_ids"][:max_tokens] for text in texts]
    vocab = min(s.shape[0] for k, s in checkpoint.pieces().items() if k.component == "embedding")
    source = torch.Generator().manual_seed(0)
    return [torch.randint(vocab, (24,), generator=source).tolist() for _ in texts]


def read_probes(path: Path | None) -> tuple[str, ...]:
    """The texts of a file, one per paragraph; without a file `PROBES`.

    Raises:
        BranchError: the file cannot be read or is empty.
    """
    if path is None:
        return PROBES
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BranchError(f"{path}: probe text cannot be read ({error})") from None
    texts = tuple(part.strip() for part in text.split("\n\n") if part.strip())
    if not texts:
        raise BranchError(f"{path}: no probe text in it")
    return texts


def lacking_memory(checkpoint: Checkpoint) -> str | None:
    """Why the model cannot be held in float32, or None if it can."""
    import psutil

    needed = sum(4 * math.prod(tensor.shape) for tensor in checkpoint.tensors.values()) * 1.2
    free = psutil.virtual_memory().available
    if needed <= free:
        return None
    return f"needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"


@torch.no_grad()
def logits_of(
    checkpoint: Checkpoint,
    ids: Sequence[Sequence[int]],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> list[Float[Tensor, "token vocab"]]:
    """Logits behind every token of each text, in float32 on the CPU.

    Loads the model and lets it go again.
    """
    place = torch.device(device)
    model = from_pretrained(checkpoint, dtype, "eager", place)
    found: dict[int, Tensor] = {}
    for batch in batches(ids, 4096, place):
        out = model(batch.ids, attention_mask=batch.mask.long()).logits.float().cpu()
        for place_in_batch, row in enumerate(batch.rows):
            found[row] = out[place_in_batch, : len(ids[row])]
    return [found[row] for row in range(len(ids))]


def distance(
    anchor: Checkpoint,
    branch: Checkpoint,
    texts: Sequence[str] = PROBES,
    *,
    known: int | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """How the branch's logits differ from the anchor's, in float32; one model in memory at a time.

    Args:
        anchor: what the branch grew from.
        branch: the branch.
        texts: what both read.
        known: tokens that both know, whose logits are compared; None for all.
        device: where the models run.

    Returns:
        `identical` bit for bit, `within_tolerance`, the largest difference `max_difference`,
        the mean `kl` in nats from the anchor to the branch, `same_first` (share of tokens with
        the same most likely next token), `num_tokens`, `tolerance`.

    Raises:
        BranchError: the logits of one of them are not finite.
    """
    ids = probe_ids(anchor, texts)
    ours, theirs = (torch.cat(logits_of(c, ids, device=device)) for c in (anchor, branch))
    for checkpoint, logits in ((anchor, ours), (branch, theirs)):
        if not torch.isfinite(logits).all():
            raise BranchError(
                f"{checkpoint.source}: its logits on the probe text are not finite numbers; look "
                "at the weights that it was made of"
            )
    known = ours.shape[1] if known is None else known
    ours, theirs = ours[:, :known], theirs[:, :known]
    kl = torch.nn.functional.kl_div(
        theirs.log_softmax(-1), ours.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    largest = float((ours - theirs).abs().max())
    return {
        "identical": bool(torch.equal(ours, theirs)),
        "within_tolerance": largest <= TOLERANCE * float(ours.abs().max()),
        "max_difference": largest,
        "kl": max(0.0, float(kl)),
        "same_first": float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
        "num_tokens": len(ours),
        "tolerance": TOLERANCE,
    }
