"""The weights of single experts, one layer at a time, from disk, in one orientation."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from moegraft.checkpoint import Checkpoint, load_tensor
from moegraft.checkpoint.reader import hash_bytes
from moegraft.errors import CheckpointError, IncompatibleError, RecipeError
from moegraft.families import Key

MATRICES = ("gate", "up", "down")


@dataclass(frozen=True, slots=True)
class ExpertStack:
    """Some experts of one layer: down(act(gate x) * up x)."""

    gate: Float[Tensor, "expert ffn hidden"]
    up: Float[Tensor, "expert ffn hidden"]
    down: Float[Tensor, "expert hidden ffn"]

    def matrix(self, name: str) -> Float[Tensor, "expert rows columns"]:
        """One of `MATRICES`."""
        return {"gate": self.gate, "up": self.up, "down": self.down}[name]


def moe_layers(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The layers that have routed experts; dense ones are left out.

    Raises:
        IncompatibleError: none has.
    """
    keys = checkpoint.pieces()
    found = {key.layer for key in keys if key.component == "experts" and key.layer is not None}
    if not found:
        raise IncompatibleError(
            f"{checkpoint.source} ({checkpoint.family.name}) has no experts; "
            "expected a Mixture-of-Experts checkpoint"
        )
    return tuple(sorted(found))


def donor_fingerprint(checkpoint: Checkpoint) -> str:
    """What tells a checkpoint from others, also of its own architecture; reads little of it.

    Sha256 of the headers, and of the content of all routers and of the first expert of each layer.
    """
    digest = hashlib.sha256(json.dumps(checkpoint.header_hashes(), sort_keys=True).encode())
    for key, piece in checkpoint.pieces().items():
        if key.component == "router" or (key.component == "experts" and key.expert == 0):
            digest.update(f"{key} {hash_bytes(piece)}\n".encode())
    return digest.hexdigest()


def find_shared(checkpoint: Checkpoint, layer: int) -> int:
    """How many experts of the routed width the shared FFN of a layer makes; 0 if it has none.

    A shared FFN whose width is no multiple of the routed experts' counts as 0 too: its neurons
    cannot be stacked with theirs.
    """
    pieces = checkpoint.pieces()
    shared = pieces.get(Key("shared_experts", layer, None, "gate.weight"))
    routed = pieces.get(Key("experts", layer, 0, "gate.weight"))
    if shared is None or routed is None or shared.shape[0] % routed.shape[0]:
        return 0
    return shared.shape[0] // routed.shape[0]


def check_top(checkpoint: Checkpoint, num_best: int) -> None:
    """Raises RecipeError when a layer has fewer experts, shared ones included."""
    num_all = checkpoint.num_experts + find_shared(checkpoint, moe_layers(checkpoint)[0])
    if not 1 <= num_best <= num_all:
        raise RecipeError(
            f"--top {num_best}: {checkpoint.source} has {num_all} experts per layer; "
            f"expected a number from 1 to {num_all}"
        )


def load_experts(
    checkpoint: Checkpoint,
    layer: int,
    experts: Sequence[int],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ExpertStack:
    """Read the experts of one layer; only their bytes are touched.

    Args:
        checkpoint: published or fused.
        layer: that has experts.
        experts: their numbers; from the number of routed experts on, slices of the shared FFN.
        device: where the tensors shall be.
        dtype: what they are converted to.

    Raises:
        IncompatibleError: the family's experts are no plain gated FFN (biases, quantised, or gate
            and up interleaved, as in gpt_oss).
        CheckpointError: a weight is not finite.
    """
    stacks = {}
    for name in MATRICES:
        parts = [_load(checkpoint, layer, expert, name).to(dtype) for expert in experts]
        stacks[name] = torch.stack(parts).to(device)
        finite = torch.isfinite(stacks[name]).flatten(1).all(1)
        if not finite.all():
            bad = experts[int((~finite).nonzero()[0])]
            raise CheckpointError(
                f"{checkpoint.source}: layer {layer}, expert {bad}: {name} has NaN or infinite "
                "weights"
            )
    return ExpertStack(**stacks)


def _load(checkpoint: Checkpoint, layer: int, expert: int, name: str) -> Tensor:
    """One matrix of one expert, or its share of the shared FFN."""
    num_experts = checkpoint.num_experts
    pieces = checkpoint.pieces()
    if expert < num_experts:
        return load_tensor(pieces[_key(checkpoint, "experts", layer, expert, name)])
    share, num_shared = expert - num_experts, find_shared(checkpoint, layer)
    if share >= num_shared:
        raise RecipeError(
            f"{checkpoint.source}: layer {layer} has no expert {expert}: {num_experts} routed and "
            f"{num_shared} shared experts"
        )
    whole = load_tensor(pieces[_key(checkpoint, "shared_experts", layer, None, name)])
    return whole.chunk(num_shared, dim=1 if name == "down" else 0)[share]


def _key(checkpoint: Checkpoint, component: str, layer: int, expert: int | None, name: str) -> Key:
    """The key of a weight; there must be nothing beside it."""
    pieces = checkpoint.pieces()
    key = Key(component, layer, expert, f"{name}.weight")
    more = (key._replace(role=f"{name}.{leaf}") for leaf in ("bias", "weight_scale_inv"))
    if key not in pieces or len(pieces[key].shape) != 2 or any(one in pieces for one in more):
        raise IncompatibleError(
            f"{checkpoint.source}: experts of {checkpoint.family.name} cannot be taken apart; "
            "expected a gate, an up and a down matrix each, without biases or scales"
        )
    return key
