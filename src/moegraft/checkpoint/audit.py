"""Is a checkpoint whole? Layers, experts and tensors named in it against config.json."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from moegraft.checkpoint.tensors import StoredPiece
from moegraft.errors import CheckpointError
from moegraft.families import Family, Key


def check_complete(
    source: str, pieces: Mapping[Key, StoredPiece], family: Family, config: Mapping[str, Any]
) -> None:
    """Check that the numbers of layers and experts agree with config.json, and nothing is missing.

    Raises:
        CheckpointError: the first layer, expert or tensor that is missing or out of range.
    """
    num_layers = family.num_layers(config)
    roles: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
    experts: defaultdict[int, defaultdict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for key in pieces:
        if key.component == "extra" or key.layer is None:
            continue
        if key.layer >= num_layers:
            name = pieces[key].name
            raise CheckpointError(
                f"{source}: {name} is in layer {key.layer}, "
                f"but config.json says {family.num_layers_key} = {num_layers}"
            )
        if key.expert is None:
            roles[key.component, key.layer].add(key.role)
        else:
            experts[key.layer][key.expert].add(key.role)
    _check_layers(source, num_layers, {layer for _, layer in roles} | set(experts))
    _check_experts(source, family, config, experts)
    for layer in range(num_layers):
        if (("router", layer) in roles) != (layer in experts):
            has, lacks = ("experts", "router") if layer in experts else ("router", "experts")
            raise CheckpointError(f"{source}: layer {layer} has a {has} but no {lacks}")
    _check_roles(source, roles)


def _check_layers(source: str, num_layers: int, found: set[int]) -> None:
    missing = next((layer for layer in range(num_layers) if layer not in found), None)
    if missing is not None:
        raise CheckpointError(
            f"{source}: no tensor of layer {missing}, but config.json says {num_layers} layers"
        )


def _check_experts(
    source: str,
    family: Family,
    config: Mapping[str, Any],
    experts: Mapping[int, Mapping[int, set[str]]],
) -> None:
    if not experts:
        return
    num_experts = family.num_experts(config)
    for layer, found in experts.items():
        wanted = next(iter(found.values()))
        for expert in range(num_experts):
            missing = sorted(wanted - found.get(expert, set()))
            if missing:
                raise CheckpointError(
                    f"{source}: expert {expert} of layer {layer} lacks {missing[0]}, "
                    f"but config.json says {num_experts} experts"
                )
        if len(found) > num_experts:
            raise CheckpointError(
                f"{source}: layer {layer} has expert {max(found)}, "
                f"but config.json says {num_experts} experts"
            )


def _check_roles(source: str, roles: Mapping[tuple[str, int], set[str]]) -> None:
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
