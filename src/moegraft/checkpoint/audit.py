"""Is a checkpoint whole? Layers, experts and tensors named in it against config.json."""

from collections import defaultdict
from collections.abc import Mapping, Set
from typing import Any

from moegraft.checkpoint.tensors import StoredPiece
from moegraft.errors import CheckpointError
from moegraft.families import Family, Key

_Roles = dict[tuple[str, int], set[str]]
"""What each layer has of each component."""
_Experts = dict[int, dict[int, set[str]]]
"""What each expert of each layer has."""


def check_complete(
    source: str,
    pieces: Mapping[Key, StoredPiece],
    family: Family,
    config: Mapping[str, Any],
    *,
    has_unknown: bool = False,
) -> None:
    """Check that the numbers of layers and experts agree with config.json, and nothing is missing.

    Component `extra` is not looked at. A checkpoint whose layers all lack the same tensor passes:
    that takes the model's code to see.

    Args:
        source: how to call the checkpoint in messages.
        pieces: all pieces of the checkpoint.
        family: its family.
        config: content of its config.json.
        has_unknown: some tensors have no piece, so only experts and layer numbers can be checked.

    Raises:
        CheckpointError: the first layer, expert or tensor that is missing or out of range.
    """
    num_layers = family.num_layers(config)
    roles, experts = _collect(source, pieces, num_layers)
    if experts:
        _check_experts(source, experts, family.num_experts(config))
    if has_unknown:
        return
    missing = sorted(set(range(num_layers)) - {layer for _, layer in roles})
    if missing:
        raise CheckpointError(
            f"{source}: no tensor of layer {missing[0]}, but config.json says {num_layers} layers"
        )
    for layer in sorted(experts.keys() ^ {n for name, n in roles if name == "router"}):
        has, lacks = ("experts", "router") if layer in experts else ("a router", "experts")
        raise CheckpointError(f"{source}: layer {layer} has {has} but no {lacks}")
    _check_alike(source, roles)
    _check_outside(source, pieces, family.sizes(config).get("tie_word_embeddings"))


def _collect(
    source: str, pieces: Mapping[Key, StoredPiece], num_layers: int
) -> tuple[_Roles, _Experts]:
    roles: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
    experts: defaultdict[int, defaultdict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for key, stored in pieces.items():
        if key.component == "extra" or key.layer is None:
            continue
        if key.layer >= num_layers:
            raise CheckpointError(
                f"{source}: {stored.name} is in layer {key.layer}, "
                f"but config.json says {num_layers} layers"
            )
        roles[key.component, key.layer].add(key.role)
        if key.expert is not None:
            experts[key.layer][key.expert].add(key.role)
    return dict(roles), {layer: dict(found) for layer, found in experts.items()}


def _check_experts(source: str, experts: _Experts, num_experts: int) -> None:
    for layer, found in experts.items():
        beyond = [expert for expert in found if expert >= num_experts]
        if beyond:
            raise CheckpointError(
                f"{source}: layer {layer} has expert {max(beyond)}, "
                f"but config.json says {num_experts} experts"
            )
        wanted: Set[str] = set().union(*found.values())
        for expert in range(num_experts):
            missing = sorted(wanted - found.get(expert, set()))
            if missing:
                raise CheckpointError(
                    f"{source}: expert {expert} of layer {layer} lacks {missing[0]}, "
                    f"but config.json says {num_experts} experts"
                )


def _check_alike(source: str, roles: _Roles) -> None:
    """Layers that have a component at all must have the same tensors of it.

    Quantised and plain layers may stand side by side, so a tensor and its quantised form count
    as one.
    """
    first: dict[str, tuple[int, set[str]]] = {}
    for (component, layer), found in sorted(roles.items()):
        plain = {role.split(".")[0] for role in found if not role.endswith(".bias")}
        seen_layer, seen = first.setdefault(component, (layer, plain))
        for role in sorted(seen ^ plain):
            lacking, having = (layer, seen_layer) if role in seen else (seen_layer, layer)
            raise CheckpointError(
                f"{source}: layer {lacking} lacks {component} {role!r}, which layer {having} has"
            )


def _check_outside(source: str, pieces: Mapping[Key, StoredPiece], tied: object) -> None:
    found = {key.component for key in pieces if key.layer is None}
    for component, name in (("embedding", "embedding"), ("norm", "final norm")):
        if component not in found:
            raise CheckpointError(f"{source}: has no {name}")
    if "lm_head" not in found and tied is False:
        raise CheckpointError(
            f"{source}: has no lm_head, but config.json does not tie it to the embedding"
        )
