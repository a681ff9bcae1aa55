"""The proof that frozen parts have not moved: a hash of every frozen tensor, expert and row."""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moegraft.errors import FrozenMovedError
from moegraft.train.rows import runs

Opened = Mapping[str, Sequence[int] | None]
"""Open parameters by live name: their open rows, or None for all of them."""

_MOST_SINGLE_ROWS = 512
"""Up to this many rows (experts) each gets its own hash; more (tokens) are hashed in runs."""


def frozen_hashes(model: nn.Module, opened: Opened) -> dict[str, str]:
    """Sha256 of every frozen part of `model`, parameters and saved buffers.

    A frozen expert or row of a parameter that is partly open is named `NAME[row]`, a run of
    frozen token rows `NAME[first:last+1]`. Under `fully_shard` this is a collective call that
    holds one gathered tensor at a time.

    Args:
        model: a live model.
        opened: what is not frozen; names without a root, as in `model.named_parameters()`.
    """
    tied = _tied_names(model, opened)
    hashes = {}
    for name, tensor in model.state_dict().items():
        if name in tied and tied[name] is None:
            continue
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for piece, part in _pieces(name, whole, tied.get(name)):
            hashes[piece] = sha256(_bytes(part)).hexdigest()
    return hashes


def check_frozen(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raise FrozenMovedError for the first name of `before` whose hash is another in `after`."""
    for name, digest in before.items():
        if name not in after:
            raise FrozenMovedError(f"{name}: was frozen and is no longer there")
        if after[name] != digest:
            raise FrozenMovedError(
                f"{name}: is frozen, but its bytes have moved (sha256 {after[name][:12]}, "
                f"expected {digest[:12]}); was every optimizer guarded?"
            )


def _tied_names(model: nn.Module, opened: Opened) -> dict[str, Sequence[int] | None]:
    """`opened`, with the other names of its parameters."""
    named = dict(model.named_parameters(remove_duplicate=False))
    rows = {id(named[name]): chosen for name, chosen in opened.items()}
    return {name: rows[id(tensor)] for name, tensor in named.items() if id(tensor) in rows}


def _pieces(
    name: str, tensor: Tensor, opened: Sequence[int] | None
) -> Iterator[tuple[str, Tensor]]:
    if opened is None:
        yield name, tensor
        return
    closed = sorted(set(range(len(tensor))) - set(opened))
    if len(tensor) <= _MOST_SINGLE_ROWS:
        yield from ((f"{name}[{row}]", tensor[row]) for row in closed)
        return
    for run in runs(closed):
        yield f"{name}[{run.start}:{run.stop}]", tensor[run.start : run.stop]


def _bytes(tensor: Tensor) -> memoryview:
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data
