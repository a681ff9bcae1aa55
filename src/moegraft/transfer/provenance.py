"""`provenance.json`: which bytes of a composed checkpoint came from where, by content."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import moegraft
from moegraft.checkpoint import Checkpoint
from moegraft.checkpoint.card import public_name
from moegraft.config import fingerprint, recipe_content
from moegraft.transfer.plan import Plan
from moegraft.transfer.recipe import HOST, TransferRecipe

PROVENANCE = "provenance.json"
SCHEMA = 1


def write_provenance(
    folder: Path,
    plan: Plan,
    licence: str | None,
    *,
    left_out: Sequence[str] = (),
    content_hashes: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write the record of `plan` into `folder`.

    Sources are identified by name, header hash, size, Hub revision and blob hash; no local path
    is recorded. `content_hashes` adds sha256 of whole files, by source and by `output`.
    """
    record = provenance(plan, licence)
    record["host_files_left_out"] = list(left_out)
    if content_hashes is not None:
        for name, hashes in content_hashes.items():
            place = record["output"] if name == "output" else record["sources"][name]
            place["content_sha256"] = dict(hashes)
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (folder / PROVENANCE).write_text(text + "\n", encoding="utf-8")


def provenance(plan: Plan, licence: str | None) -> dict[str, Any]:
    """The record as plain data; see docs/transfer.md for its fields."""
    recipe = public_recipe(plan)
    return {
        "schema": SCHEMA,
        "tool": {"name": "moegraft", "version": moegraft.__version__},
        "byte_exact": plan.copies_everything,
        "recipe": recipe_content(recipe),
        "recipe_fingerprint": fingerprint(recipe),
        "licence": licence,
        "sources": {HOST: _source(plan.host)}
        | {name: _source(donor) for name, donor in plan.donors.items()},
        "selections": [
            {
                "selection": str(selection),
                "donor": plan.recipe.donor_of(selection),
                "tensors": tensors,
                "pieces": pieces,
                "bytes": nbytes,
            }
            for selection, (tensors, pieces, nbytes) in zip(
                plan.recipe.selections, plan.selection_counts, strict=True
            )
        ],
        "tensors": [account._asdict() for account in plan.accounts],
        "unused_donor_tensors": {name: dict(plan.unused(name)) for name in plan.donors},
        "unknown_tensors": {HOST: list(plan.host.unknown)}
        | {name: list(donor.unknown) for name, donor in plan.donors.items()},
        "output": {
            "tensors": len(plan.host.tensors),
            "bytes": plan.nbytes,
            "layout": plan.host.layout,
        },
        "warnings": list(plan.warnings),
    }


def public_recipe(plan: Plan) -> TransferRecipe:
    """The plan's recipe with sources by name instead of by local path."""
    recipe = plan.recipe
    return replace(
        recipe,
        host=_public_source(plan.host),
        donors={name: _public_source(donor) for name, donor in plan.donors.items()},
        map=None if recipe.map is None else Path(recipe.map).name,
    )


def _public_source(checkpoint: Checkpoint) -> str:
    name = public_name(checkpoint)
    return f"{name}@{checkpoint.revision}" if checkpoint.revision else name


def _source(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "name": public_name(checkpoint),
        "revision": checkpoint.revision,
        "family": checkpoint.family.name,
        "layout": checkpoint.layout,
        "files": checkpoint.header_hashes(),
    }
