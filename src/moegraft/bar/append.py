"""Make a branch of a MoE: append experts to every layer, freeze all else, start without a change.

Beyond the paper, whose anchors are dense. The new experts have the gate and up projections of the
old experts that serve the text most, and a down-projection of zeros; their router rows start as
`bar.neutral` says, so that on that text the branch's logits are the host's bit for bit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from moegraft.bar.branch import BranchRecipe
from moegraft.bar.card import write_branch_card
from moegraft.bar.cost import merged_costs
from moegraft.bar.distance import probe_ids, read_probes
from moegraft.bar.entries import byte_range, computed, copied, produced
from moegraft.bar.manifest import Manifest, identity, write_manifest
from moegraft.bar.names import (
    experts_digest,
    find_piece,
    named_pieces,
    published_name,
    row_name,
)
from moegraft.bar.neutral import Row, neutral_rows
from moegraft.bar.vocabulary import VOCABULARY, NewTokens, plan_tokens
from moegraft.bar.write import write_model
from moegraft.checkpoint import Checkpoint, StoredPiece, open_checkpoint
from moegraft.checkpoint.card import base_models, common_licence
from moegraft.checkpoint.tensors import hash_bytes
from moegraft.checkpoint.writer import Entry
from moegraft.errors import BranchError
from moegraft.families import Family, Key
from moegraft.runtime.load import from_pretrained

FAMILIES = ("olmoe", "flex_olmo", "mixtral", "qwen2_moe", "qwen3_moe")
"""Whose routers take a softmax over all experts, without bias, and then the top k."""

_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class AppendPlan:
    """A checked branch of a MoE."""

    recipe: BranchRecipe
    anchor: Checkpoint
    tokens: NewTokens | None
    rows: Mapping[int, Row]
    """How each layer's new router rows start."""
    warnings: tuple[str, ...]

    @property
    def starts_equal(self) -> bool:
        """Whether no token of the probe text sees the new experts."""
        return not any(row.num_displaced or row.num_loud for row in self.rows.values())

    @property
    def family(self) -> Family:
        """Of the branch: the host's."""
        return self.anchor.family

    @property
    def num_old(self) -> int:
        """Experts that the host has."""
        return self.anchor.num_experts

    @property
    def config(self) -> dict[str, Any]:
        """config.json of the branch."""
        return grown_config(
            self.anchor, self.num_old + self.recipe.experts, self.tokens and self.tokens.num_rows
        )

    def costs(self, domains: int) -> dict[str, Any]:
        """What the merged model will cost for that many domains."""
        return merged_costs(self.anchor, domains, self.recipe.experts)


def plan_append(recipe: BranchRecipe) -> AppendPlan:
    """Check that experts can be appended, and find their router rows: loads the host in float32.

    Raises:
        BranchError: the family's router has another form, the host is quantised or its tokenizer
            cannot take the new tokens, a text cannot be read, or an option does not apply.
    """
    anchor = open_checkpoint(recipe.anchor)
    if anchor.family.name not in FAMILIES:
        raise BranchError(
            f"{anchor.source}: appending needs a softmax router without bias; expected one of "
            f"{', '.join(FAMILIES)}, got {anchor.family.name}"
        )
    for given, name in ((recipe.pretrained, "pretrained"), (recipe.router != "normal", "router")):
        if given:
            raise BranchError(f"{name} is for dense anchors; {anchor.source} is a MoE")
    for key, stored in anchor.pieces().items():
        if key.component in ("experts", "router") and key.role.split(".")[-1] != "weight":
            raise BranchError(f"{anchor.source}: {stored.name} is quantised or a bias")
    tokens = plan_tokens(anchor, recipe.new_tokens, noise=recipe.token_noise, seed=recipe.seed)
    texts = [read_probes(Path(path) if path else None) for path in (recipe.probe, recipe.toward)]
    keep = probe_ids(anchor, texts[0])
    reach = probe_ids(anchor, texts[1]) if recipe.toward else []
    model = from_pretrained(anchor, torch.float32, "eager", torch.device("cpu"))
    rows = neutral_rows(model, anchor.family, keep, reach)
    return AppendPlan(recipe, anchor, tokens, rows, tuple(_warnings(anchor, rows, recipe)))


def write_append(plan: AppendPlan, out: str | Path) -> Manifest:
    """Write the branch to `out`, every old byte as it is; peak memory is one expert's tensor.

    Returns:
        The manifest that was written.

    Raises:
        OutputError: `out` cannot be used, or the disk is full.
    """
    return write_model(
        out,
        tuple(_entries(plan)),
        plan.config,
        plan.anchor,
        inputs=[plan.anchor.path],
        tokenizer=None if plan.tokens is None else plan.tokens.tokenizer,
        finish=partial(_finish, plan),
    )


def grown_config(anchor: Checkpoint, num_experts: int, num_rows: int | None) -> dict[str, Any]:
    """The host's config.json with another number of experts, and of tokens unless None."""
    found = dict(anchor.config)
    own = str(anchor.family.num_experts_key)
    named = [name for name in _COUNTS if name in found]
    found |= dict.fromkeys(named or [own], num_experts)
    return found if num_rows is None else found | {"vocab_size": num_rows}


def _warnings(anchor: Checkpoint, rows: Mapping[int, Row], recipe: BranchRecipe) -> Iterator[str]:
    hidden = next(iter(rows.values())).row.shape[0]
    num_tokens = next(iter(rows.values())).num_tokens
    loud = {layer: row for layer, row in rows.items() if row.num_displaced or row.num_loud}
    if loud:
        told = ", ".join(
            f"layer {layer}: {row.num_displaced} of {row.num_tokens} tokens lose an expert, "
            f"{row.num_loud} see it"
            for layer, row in loud.items()
        )
        yield f"no start without any change was found in {len(loud)} layers ({told})"
    if num_tokens < 4 * hidden:
        yield (
            f"the router rows were found on {num_tokens} tokens for {hidden} numbers each, so "
            "other text may be sent to the new experts; give more text with --probe"
        )
    if not recipe.toward:
        yield (
            "no text of the domain was given with --toward, so no token reaches the new experts "
            "yet: `bar adapt` trains with a load-balancing loss and Adam's epsilon at 1e-15 so "
            "that some do; a loop of your own has to do the same"
        )


def _entries(plan: AppendPlan) -> Iterator[Entry]:
    pieces = plan.anchor.pieces()
    old, new = plan.num_old, plan.recipe.experts
    for key, stored in pieces.items():
        if key.component == "router":
            yield _grown_router(plan, key, stored)
        elif key.component == "experts":
            yield copied(published_name(plan.family, key), stored)
            if key.expert == old - 1:
                for place in range(new):
                    yield _new_expert(plan, key._replace(expert=old + place), place)
        elif key.component in VOCABULARY and plan.tokens is not None:
            yield plan.tokens.entry(stored, stored.name, VOCABULARY.index(key.component))
        else:
            yield Entry.of(stored.tensor)
    for name in plan.anchor.unknown:
        yield Entry.of(plan.anchor.tensors[name])


def _grown_router(plan: AppendPlan, key: Key, stored: StoredPiece) -> Entry:
    assert key.layer is not None
    row, new = plan.rows[key.layer].row, plan.recipe.experts
    hidden = stored.shape[1]
    grown = produced(stored.dtype, (new, hidden), lambda: row.expand(new, hidden))
    shape = (plan.num_old + new, hidden)
    return Entry(stored.name, stored.dtype, shape, (byte_range(stored), grown))


def _new_expert(plan: AppendPlan, key: Key, place: int) -> Entry:
    assert key.layer is not None
    name = published_name(plan.family, key)
    model = plan.rows[key.layer].favourites[place % plan.num_old]
    like = plan.anchor.pieces()[key._replace(expert=model)]
    if key.role.startswith("down"):
        return computed(name, like.dtype, like.shape, lambda: torch.zeros(like.shape))
    return copied(name, like)


def _finish(plan: AppendPlan, folder: Path) -> Manifest:
    written, old = open_checkpoint(folder), plan.num_old
    pieces = named_pieces(written)
    names = []
    for name, stored in pieces.items():
        key = stored.piece.key
        if key.component == "router":
            names.append(row_name(name, 0, old))
        elif key.component in VOCABULARY and plan.tokens is not None:
            names.append(row_name(name, 0, plan.tokens.num_old))
        elif key.expert is None or key.expert < old:
            names.append(name)
    manifest = Manifest(
        kind="appended",
        domain=plan.recipe.domain,
        anchor=identity(plan.anchor, plan.anchor.content_hashes()),
        frozen={name: hash_bytes(find_piece(pieces, name)) for name in names},
        shared={},
        num_appended=plan.recipe.experts,
        tokens={} if plan.tokens is None else dict(plan.tokens.ids),
        start={
            "router": "toward" if plan.recipe.toward else "neutral",
            "layers": [_about(layer, row) for layer, row in plan.rows.items()],
            "seed": plan.recipe.seed,
            "warnings": list(plan.warnings),
            "experts_sha256": experts_digest(written, old),
        },
    )
    write_manifest(folder, manifest)
    licence = common_licence({"host": plan.anchor}, plan.recipe.licence)
    bases, count = base_models(plan.anchor), written.num_experts
    write_branch_card(folder, manifest, licence, bases, num_experts=count)
    return manifest


def _about(layer: int, row: Row) -> dict[str, Any]:
    return {
        "layer": layer,
        "tokens": row.num_tokens,
        "displaced": row.num_displaced,
        "loud": row.num_loud,
        "reached": row.share_reached,
    }
