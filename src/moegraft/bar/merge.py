"""Merge branches and their anchor into one MoE, or by the baselines that BAR is compared with."""

import json
from collections.abc import Callable
from pathlib import Path

from moegraft.bar.average import by_component
from moegraft.bar.card import branch_bases, write_merge_card
from moegraft.bar.manifest import identity
from moegraft.bar.merge_appended import AppendedMerge, plan_appended
from moegraft.bar.merge_dense import DenseMerge, plan_dense
from moegraft.bar.merge_recipe import MergeRecipe
from moegraft.bar.names import content_digest
from moegraft.bar.record import (
    DIVERGENCE,
    MergeRecord,
    read_record,
    relative_source,
    write_record,
)
from moegraft.bar.write import write_model
from moegraft.checkpoint import open_checkpoint
from moegraft.checkpoint.card import Licence, base_models, common_licence

__all__ = ["MergePlan", "MergeRecipe", "plan_merge", "write_merge"]

MergePlan = DenseMerge | AppendedMerge


def plan_merge(recipe: MergeRecipe) -> MergePlan:
    """Check that the branches fit; reads their frozen tensors and the anchor once, to hash them.

    Raises:
        BranchError: names the branch and the first thing that does not fit.
        CheckpointError: a folder is damaged.
        RecipeError: the models state different licences and the recipe names none.
    """
    anchor = open_checkpoint(recipe.anchor)
    about = identity(anchor, anchor.content_hashes())
    planned = plan_appended if anchor.family.is_moe else plan_dense
    plan = planned(recipe, anchor, about)
    _licence(plan)
    return plan


def _licence(plan: MergePlan) -> Licence:
    sources = {part.name: part.checkpoint for part in plan.parts}
    return common_licence({"anchor": plan.anchor, **sources}, plan.recipe.licence)


def _bases(plan: MergePlan) -> list[str]:
    """Names of what the merge is made of: of branches, what they are made of."""
    dense = () if plan.branches else plan.parts
    parts = [branch_bases(branch) for branch in plan.branches]
    parts += [base_models(part.checkpoint) for part in dense]
    return [*base_models(plan.anchor), *(name for part in parts for name in part)]


def write_merge(
    plan: MergePlan, out: str | Path, *, on_bytes: Callable[[int], None] | None = None
) -> MergeRecord:
    """Write the merged model with `merge.json` and `divergence.json`.

    Streams from disk: memory is one tensor, times the models whose pages are being read.

    Returns:
        The record that was written.

    Raises:
        OutputError: `out` cannot be used, or the disk is full.
        BranchError: policy `equal`, and a tensor differs; or a shared tensor is not finite.
    """
    return write_model(
        out,
        plan.entries,
        plan.config,
        plan.anchor,
        inputs=[plan.anchor.path, *(part.checkpoint.path for part in plan.parts)],
        tokenizer=None if plan.tokens is None else plan.tokens.tokenizer,
        finish=lambda folder: _finish(plan, folder, Path(out)),
        on_bytes=on_bytes,
    )


def is_written(plan: MergePlan, out: Path) -> bool:
    """Whether `out` holds what this plan would write, by its record and the parts' content."""
    planned = json.loads(json.dumps(_record(plan, out).as_dict()))
    return planned == json.loads(json.dumps(read_record(out).as_dict()))


def _record(plan: MergePlan, out: Path) -> MergeRecord:
    recipe = plan.recipe
    experts = [
        {
            "domain": part.name,
            "experts": list(places),
            "source": relative_source(part.checkpoint, out),
            "content_sha256": content_digest(part.checkpoint),
            "stages": [],
        }
        for part, places in zip(plan.parts, plan.places, strict=True)
    ]
    for entry, branch in zip(experts, plan.branches, strict=False):
        entry["stages"] = [dict(stage) for stage in branch.manifest.stages]
    source = relative_source(plan.anchor, out)
    appended = isinstance(plan, AppendedMerge)
    return MergeRecord(
        method="appended" if appended else recipe.method,
        anchor={**plan.anchor_identity, "source": source},
        experts=tuple(experts),
        shared={"default": plan.policy(""), **recipe.shared_by},
        tokens={} if plan.tokens is None else dict(plan.tokens.ids),
        warnings=plan.warnings,
        as_released=recipe.as_released,
    )


def _finish(plan: MergePlan, folder: Path, out: Path) -> MergeRecord:
    record = _record(plan, out)
    write_record(folder, record)
    write_merge_card(
        folder,
        record,
        _licence(plan),
        _bases(plan),
        title=out.expanduser().resolve().name,
        is_moe=not plan.is_dense,
    )
    moved = {"components": by_component(plan.shared.moved), "tensors": plan.shared.moved}
    (folder / DIVERGENCE).write_text(json.dumps(moved, indent=1) + "\n", encoding="utf-8")
    return record
