"""Make a branch of a dense anchor: a MoE of the frozen anchor FFN and one domain expert.

Expert 0 is the anchor's FFN, expert 1 starts from the pretrained model's (the paper) or from the
anchor's; every other tensor is the anchor's; a linear router without bias weighs the two by a
softmax over all experts, both always active (arXiv:2604.18473, section on branches).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from moegraft.bar.card import write_branch_card
from moegraft.bar.cost import merged_costs
from moegraft.bar.entries import computed, copied
from moegraft.bar.manifest import Manifest, identity, write_manifest
from moegraft.bar.names import experts_digest, named_pieces, published_name, row_name, rows
from moegraft.bar.router import check_start, router_rows
from moegraft.bar.twin import check_tensors, expert_key, twin_config, twin_of
from moegraft.bar.vocabulary import VOCABULARY, NewTokens, plan_tokens
from moegraft.bar.write import write_model
from moegraft.checkpoint import Checkpoint, open_checkpoint
from moegraft.checkpoint.card import Licence, base_models, common_licence
from moegraft.checkpoint.tensors import hash_bytes
from moegraft.checkpoint.writer import Entry
from moegraft.config import STRICT
from moegraft.errors import BranchError
from moegraft.families import Family, Key
from moegraft.transfer.compatibility import config_differences
from moegraft.transfer.vocabulary import read_tokenizer, tokenizer_differences

NUM_EXPERTS = 2
"""The anchor's FFN and the domain expert."""


@dataclass(frozen=True, slots=True)
class BranchRecipe:
    """What a branch is made of."""

    __pydantic_config__: ClassVar[Any] = STRICT

    anchor: str
    """Folder, `org/name[@revision]` or `nano:NAME`: the post-trained model."""
    domain: str
    """What the branch will learn; names its expert from now on."""
    pretrained: str | None = None
    """The model whose FFN the domain expert starts from; the anchor when left out."""
    router: str = "normal"
    """`normal`, `zero`, or a .npy file with domain embeddings [2, hidden] or [layer, 2, hidden]."""
    seed: int = 0
    """Of the router, and of the noise on new tokens."""
    new_tokens: tuple[str, ...] = ()
    """Added to tokenizer and vocabulary, their rows at the mean row."""
    token_noise: float = 0.0
    """Noise on those rows, in standard deviations of each column."""
    experts: int = 1
    """Experts to append per layer, where the anchor is a MoE."""
    probe: str | None = None
    """A text file, cut at empty lines: where nothing may change when experts are appended."""
    toward: str | None = None
    """A text file of the domain, whose tokens shall reach the appended experts from the start."""
    licence: str | None = None
    """Of the result, where its sources state different ones."""

    def __post_init__(self) -> None:
        if not self.domain.isprintable() or not self.domain.strip() or {*"/="} & {*self.domain}:
            raise ValueError(
                f"domain: expected a printable name without '/' or '=', got {self.domain!r}"
            )
        if self.domain == "anchor":
            raise ValueError("domain: 'anchor' is what the branches' own model is called")
        if not 0 <= self.token_noise < math.inf:
            raise ValueError(f"token_noise: expected a number from 0, got {self.token_noise}")
        if self.experts < 1:
            raise ValueError(f"experts: expected at least 1, got {self.experts}")


@dataclass(frozen=True)
class BranchPlan:
    """A checked branch: what will be written, made from headers alone."""

    recipe: BranchRecipe
    anchor: Checkpoint
    pretrained: Checkpoint
    """The anchor itself, where no other was named."""
    family: Family
    """Of the branch."""
    config: Any
    """The branch's transformers config."""
    tokens: NewTokens | None
    routers: Mapping[int, Any]
    """How each layer's router starts."""
    warnings: tuple[str, ...]
    licence: Licence

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Every tensor of the branch and the bytes that make it."""
        return tuple(_entries(self))

    @property
    def starts_equal(self) -> bool:
        """Whether the branch computes what the anchor does, but for rounding."""
        return self.pretrained is self.anchor

    def costs(self, domains: int) -> dict[str, Any]:
        """What the merged model will cost for that many domains."""
        return merged_costs(self.anchor, domains)


def plan_branch(recipe: BranchRecipe) -> BranchPlan:
    """Check that a branch can be made of the recipe's dense anchor; reads headers only.

    Raises:
        BranchError: no MoE family computes what the anchor does, anchor and pretrained model do
            not fit, or the tokenizer cannot take the new tokens.
        CheckpointError: a checkpoint is damaged.
        RecipeError: the two state different licences and the recipe names none.
    """
    anchor = open_checkpoint(recipe.anchor)
    pretrained = anchor if recipe.pretrained is None else open_checkpoint(recipe.pretrained)
    family = twin_of(anchor)[1]
    if recipe.experts != 1 or recipe.toward is not None:
        raise BranchError(f"experts and toward are for MoE hosts; {anchor.source} is dense")
    check_start(recipe.router)
    check_tensors(anchor)
    licence = common_licence({"anchor": anchor, "pretrained": pretrained}, recipe.licence)
    warnings = _compare(anchor, pretrained) if pretrained is not anchor else []
    tokens = plan_tokens(anchor, recipe.new_tokens, noise=recipe.token_noise, seed=recipe.seed)
    config = twin_config(anchor, NUM_EXPERTS)
    layers = sorted({key.layer for key in anchor.pieces() if key.component == "mlp"})  # type: ignore[type-var]
    routers = router_rows(recipe.router, layers, NUM_EXPERTS, config.hidden_size, recipe.seed)  # type: ignore[arg-type]
    if tokens is not None:
        config.vocab_size = tokens.num_rows
        if len(tokens.ids) > 1 and not tokens.noise:
            warnings.append(
                f"the rows of the {len(tokens.ids)} new tokens start equal (the mean row): a stage "
                "that keeps embeddings and head frozen cannot tell them apart"
            )
    told = tuple(warnings)
    return BranchPlan(recipe, anchor, pretrained, family, config, tokens, routers, told, licence)


def write_branch(plan: BranchPlan, out: str | Path) -> Manifest:
    """Write the branch to `out`: published layout, the anchor's tokenizer, and branch.json.

    Whole tensors are copied as byte ranges; peak memory is one router or the rows of the new
    tokens. The folder appears only when it is complete.

    Returns:
        The manifest that was written.

    Raises:
        OutputError: `out` cannot be used, or the disk is full.
    """
    return write_model(
        out,
        plan.entries,
        plan.config.to_dict(),
        plan.anchor,
        inputs=[plan.anchor.path, plan.pretrained.path],
        tokenizer=None if plan.tokens is None else plan.tokens.tokenizer,
        finish=lambda folder: _finish(plan, folder),
    )


def with_distance(manifest: Manifest, found: dict[str, Any]) -> Manifest:
    """The manifest with what `distance` measured before any training."""
    return replace(manifest, start={**manifest.start, "distance": found})


def _compare(anchor: Checkpoint, pretrained: Checkpoint) -> list[str]:
    """Warnings about a pretrained model whose FFN was trained with something else."""
    ours, theirs = anchor.family.name, pretrained.family.name
    if ours != theirs:
        raise BranchError(
            f"pretrained {pretrained.source} is a {theirs}, the anchor {anchor.source} a {ours}; "
            "expected one family"
        )
    given = pretrained.pieces()
    for key, stored in anchor.pieces().items():
        if key.component != "mlp":
            continue
        if key not in given or given[key].shape != stored.shape:
            got = list(given[key].shape) if key in given else "nothing"
            raise BranchError(
                f"{key}: pretrained {pretrained.source} has {got}, the anchor "
                f"{list(stored.shape)}; expected FFNs of one shape"
            )
    told = [
        f"{difference.field}: the anchor has {difference.host}, the pretrained model "
        f"{difference.donor}; the branch keeps the anchor's"
        for difference in config_differences(anchor, pretrained)
    ]
    for sentence in tokenizer_differences(read_tokenizer(anchor), read_tokenizer(pretrained)):
        named = sentence.replace("host", "anchor").replace("donor", "pretrained model")
        told.append(f"tokenizer: {named}; the branch keeps the anchor's")
    return told


def _entries(plan: BranchPlan) -> Iterator[Entry]:
    given = plan.pretrained.pieces()
    routed: set[int] = set()
    for key, stored in plan.anchor.pieces().items():
        if key.component == "mlp":
            assert key.layer is not None
            if key.layer not in routed:
                routed.add(key.layer)
                yield _router(plan, key.layer, stored.dtype)
            for expert, source in enumerate((stored, given[key])):
                name = published_name(plan.family, expert_key(key, expert))
                yield copied(name, source, stored.dtype)
        elif key.component in VOCABULARY and plan.tokens is not None:
            salt = VOCABULARY.index(key.component)
            yield plan.tokens.entry(stored, published_name(plan.family, key), salt)
        elif key.component != "extra":
            yield copied(published_name(plan.family, key), stored)


def _router(plan: BranchPlan, layer: int, dtype: str) -> Entry:
    name = published_name(plan.family, Key("router", layer, None, "router.weight"))
    shape = (NUM_EXPERTS, int(plan.config.hidden_size))
    return computed(name, dtype, shape, lambda: plan.routers[layer])


def _finish(plan: BranchPlan, folder: Path) -> Manifest:
    manifest = _manifest(plan, open_checkpoint(folder))
    write_manifest(folder, manifest)
    bases = [name for source in (plan.anchor, plan.pretrained) for name in base_models(source)]
    write_branch_card(folder, manifest, plan.licence, bases, num_experts=NUM_EXPERTS)
    return manifest


def _manifest(plan: BranchPlan, written: Checkpoint) -> Manifest:
    frozen, shared = {}, {}
    for name, stored in named_pieces(written).items():
        key = stored.piece.key
        if key.component == "router":
            frozen[row_name(name, 0, 1)] = hash_bytes(rows(stored, 0, 1))
        elif key.component == "experts":
            if key.expert == 0:
                frozen[name] = hash_bytes(stored)
        else:
            shared[name] = hash_bytes(stored)
    recipe = plan.recipe
    start = {
        "expert_1": "anchor" if plan.pretrained is plan.anchor else "pretrained",
        "router": recipe.router if recipe.router in ("normal", "zero") else "embeddings",
        "seed": recipe.seed,
        "warnings": list(plan.warnings),
        "experts_sha256": experts_digest(written, 1),
    }
    if plan.pretrained is not plan.anchor:
        start["pretrained"] = identity(plan.pretrained, plan.pretrained.content_hashes())
    if plan.tokens is not None:
        start["token_noise"] = recipe.token_noise
    return Manifest(
        kind="dense",
        domain=recipe.domain,
        anchor=identity(plan.anchor, plan.anchor.content_hashes()),
        frozen=frozen,
        shared=shared,
        tokens={} if plan.tokens is None else dict(plan.tokens.ids),
        start=start,
    )
