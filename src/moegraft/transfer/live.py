"""The same plan as patches for a live model: what `apply` writes, without writing it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moegraft.errors import FamilyError, IncompatibleError, RecipeError
from moegraft.families import Piece
from moegraft.runtime import Host, Patch
from moegraft.transfer.mix import fill_piece
from moegraft.transfer.plan import KEEP, Plan, Source, plan_transfer
from moegraft.transfer.recipe import HOST, component_recipe
from moegraft.transfer.scope import Slot


def patches(plan: Plan, host: Host) -> list[Patch]:
    """Patches that make the live `host` compute what the checkpoint written by `plan` computes.

    A tensor that comes whole from one donor is that donor's own, without a copy. Single experts
    are slices of the donor's; mixes and casts are computed from the stored bytes when the patch is
    applied, exactly as on disk. Logits are bit-identical to those of the written checkpoint.

    Args:
        plan: made for the same checkpoints as `host`, under the same donor names.
        host: loaded with every donor of the plan.

    Raises:
        RecipeError: `host` holds other checkpoints than the plan.
        IncompatibleError: a mix of tensors that are stored packed, or a live tensor that fits no
            pattern of the family (kept under `unknown: host`).
    """
    _check_same_sources(plan, host)
    return [patch for name in host.parameter_names() for patch in _patches_of(plan, host, name)]


def lm(host: Host, configuration: str, **options: Any) -> Any:
    """An lm-eval `LM` that answers as `host` with `configuration` swapped in.

    Give it to `lm_eval.simple_evaluate(model=...)`. The host is switched for each batch of
    requests and restored after it.

    Args:
        host: loaded with a donor named `donor`.
        configuration: such as `router+experts`; `host` for the host itself, `donor` for the donor.
        options: passed on to `evals.Scorer`.

    Raises:
        RecipeError: a component that does not exist, or no donor named `donor`.
    """
    from moegraft.evals.scorer import Scorer

    return Scorer(host, patches=partial(configuration_patches, host, configuration), **options)


@contextmanager
def composed(host: Host, configuration: str) -> Iterator[Any]:
    """Run a block with `configuration` swapped into `host`, and restore it exactly afterwards.

    Args:
        host: loaded with a donor named `donor`.
        configuration: such as `attention+experts`; `host` for the host itself, `donor` for the
            donor.

    Yields:
        The live transformers model.

    Raises:
        RecipeError: a component that does not exist, no donor named `donor`, or `host` is swapped
            already.
    """
    with host.with_patches(configuration_patches(host, configuration)):
        yield host.model


def configuration_patches(host: Host, configuration: str) -> list[Patch]:
    """Patches of a configuration such as `router+experts`, from the donor named `donor`.

    Raises:
        RecipeError: a component that does not exist, or no donor named `donor`.
    """
    if configuration in ("", HOST):
        return []
    if "donor" not in host.donor_checkpoints:
        known = ", ".join(host.donor_checkpoints) or "none"
        raise RecipeError(f"{configuration}: expected a donor named 'donor', got: {known}")
    donor = host.donor_checkpoints["donor"]
    recipe = component_recipe(host.checkpoint.source, donor.source, configuration)
    return patches(plan_transfer(recipe, host.checkpoint, {"donor": donor}), host)


def _check_same_sources(plan: Plan, host: Host) -> None:
    pairs = [("host", plan.host, host.checkpoint)]
    pairs += [
        (name, donor, host.donor_checkpoints.get(name)) for name, donor in plan.donors.items()
    ]
    for name, planned, held in pairs:
        if held is None or held.path.resolve() != planned.path.resolve():
            got = "no such donor" if held is None else held.source
            raise RecipeError(
                f"the plan takes {name!r} from {planned.source}, the loaded host has {got}; "
                "load both from the same sources"
            )


def _patches_of(plan: Plan, host: Host, name: str) -> Iterator[Patch]:
    try:
        place = plan.host.family.place(name)
    except FamilyError:
        if plan.recipe.unknown == "host":
            return
        raise
    if place.component == "lm_head" and plan.host.tied_embeddings:
        return  # the embedding's patch re-points both names
    like = host.parameter(name)
    num_experts = like.shape[0] if place.rule.stacked else 0
    experts = range(num_experts) if place.rule.stacked else (place.expert,)
    sources = [plan.moves.get(Slot(place.component, place.layer, e), KEEP) for e in experts]
    if all(source is KEEP for source in sources):
        return
    if len(set(sources)) == 1 and sources[0].copies:
        yield Patch(name, host.donor_value(sources[0].name, name))
    elif not place.rule.stacked:
        yield Patch(name, partial(_from_stored, plan, like, name, None))
    else:
        for expert, source in enumerate(sources):
            if source is not KEEP:
                yield Patch(name, _slice(plan, host, name, expert, source), expert)


def _slice(
    plan: Plan, host: Host, name: str, expert: int, source: Source
) -> Tensor | Callable[[], Tensor]:
    if source.copies and host.memory.mode == "resident":
        return host.donor_parameter(source.name, name)[expert]
    like = host.parameter(name)
    if source.copies and not _is_stored(plan, like, name, expert):
        return lambda: host.donor_parameter(source.name, name)[expert]
    return partial(_from_stored, plan, like, name, expert)


def _from_stored(plan: Plan, like: Tensor, name: str, expert: int | None) -> Tensor:
    """What the plan puts into a live tensor, or one expert of it, from the stored bytes."""
    parts = []
    stored = plan.host.pieces()
    for piece in _pieces(plan, like, name, expert):
        found = stored.get(piece.key)
        if found is None or found.shape != piece.shape:
            raise IncompatibleError(
                f"{name}: its checkpoint stores {piece.key} in another form, "
                "so it cannot be mixed or cast in a live model"
            )
        source = plan.source(piece.key)
        assert source is not KEEP, "all pieces of one slot have one source"
        donor = plan.donors[source.name].pieces()[piece.key]
        parts.append(fill_piece(source, found, donor))
    value = parts[0] if len(parts) == 1 else torch.cat(parts)
    return value.to(device=like.device, dtype=like.dtype)


def _pieces(plan: Plan, like: Tensor, name: str, expert: int | None) -> list[Piece]:
    pieces = plan.host.family.pieces(name, like.shape, like.numel() * like.element_size())
    return [piece for piece in pieces if expert is None or piece.key.expert == expert]


def _is_stored(plan: Plan, like: Tensor, name: str, expert: int) -> bool:
    stored = plan.host.pieces()
    return all(
        piece.key in stored and stored[piece.key].shape == piece.shape
        for piece in _pieces(plan, like, name, expert)
    )
