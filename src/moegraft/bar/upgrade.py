"""Add, upgrade or remove one domain of a merged model: merge anew from the branches it is made of.

Only the branch that changes is trained again; the others are found by the merged model's record
and checked by hash. The routers are trained after the merge, and the result is meant to pass a
gate against the model that is deployed now before it takes its place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moegraft.bar.branches import open_branch
from moegraft.bar.merge_recipe import MergeRecipe
from moegraft.bar.names import content_digest
from moegraft.bar.record import MERGE, MergeRecord, read_record, source_of
from moegraft.checkpoint import open_checkpoint
from moegraft.errors import BranchError, CheckpointError

Change = Literal["add", "upgrade", "remove"]


@dataclass(frozen=True, slots=True)
class Revision:
    """One change of a merged model."""

    change: Change
    domain: str
    recipe: MergeRecipe
    """The merge that carries it out."""
    anchor: str
    """The model that everything grew from, which the result is compared with too."""


def plan_revision(
    merged: str | Path,
    change: Change,
    *,
    branch: str | Path | None = None,
    domain: str | None = None,
    moved: Mapping[str, str] | None = None,
    licence: str | None = None,
) -> Revision:
    """Plan a change of the merged model in `merged`; reads every branch once, to check it.

    Args:
        merged: a folder that `bar merge` or `bar route` made.
        change: what to do.
        branch: the branch to add, or the one that takes the place of its domain's.
        domain: the domain to remove.
        moved: folders of branches, by domain, and of the `anchor`, that are no longer where the
            record says.
        licence: of the result, where its sources state different ones.

    Raises:
        BranchError: there is no record; the domain is there already, or is not; a branch is not
            found or is not the one that was merged.
    """
    record = read_record(merged)
    if record.method not in ("bar", "appended"):
        raise BranchError(f"{merged}: was made by method {record.method!r}, which has no branches")
    found = _branches(record, Path(merged), dict(moved or {}))
    if change == "remove":
        assert domain is not None
        _check_known(domain, record, merged)
        if len(found) == 1:
            raise BranchError(f"{merged}: {domain!r} is its only domain; use its anchor instead")
        del found[domain]
    else:
        assert branch is not None
        domain = open_branch(branch).domain
        if change == "upgrade":
            _check_known(domain, record, merged)
        elif domain in found:
            raise BranchError(
                f"{branch}: {merged} has a branch for {domain!r} already; expected `bar upgrade`"
            )
        found[domain] = str(branch)
    for name, source in found.items():
        if name != domain:
            _check_same(name, source, record, merged)
    anchor = (moved or {}).get("anchor") or source_of(record.anchor, merged)
    return Revision(change, domain, _recipe(record, merged, anchor, found, licence), anchor)


def _branches(record: MergeRecord, folder: Path, moved: dict[str, str]) -> dict[str, str]:
    unknown = sorted(set(moved) - {*record.domains, "anchor"})
    if unknown:
        raise BranchError(
            f"{folder}: has no domain {unknown[0]!r}; expected some of {', '.join(record.domains)}"
        )
    return {
        entry["domain"]: moved.get(entry["domain"]) or source_of(entry, folder)
        for entry in record.experts
    }


def _check_known(domain: str, record: MergeRecord, merged: str | Path) -> None:
    if domain not in record.domains:
        raise BranchError(
            f"{merged}: has no domain {domain!r}; expected one of {', '.join(record.domains)}"
        )


def _check_same(domain: str, source: str, record: MergeRecord, merged: str | Path) -> None:
    """The branch must be the one that was merged: nothing else may change with a revision."""
    entry = next(entry for entry in record.experts if entry["domain"] == domain)
    try:
        found = content_digest(open_checkpoint(source))
    except CheckpointError as error:
        raise BranchError(
            f"{merged}: its branch for {domain!r} is not at {source} ({error}); say where it is "
            f"with --where {domain}=FOLDER"
        ) from None
    if found != entry["content_sha256"]:
        raise BranchError(
            f"{source}: is not the branch for {domain!r} that {merged}/{MERGE} records "
            f"({found[:12]}, expected {str(entry['content_sha256'])[:12]}); upgrade one domain at "
            "a time"
        )


def _recipe(
    record: MergeRecord,
    merged: str | Path,
    anchor: str,
    branches: Mapping[str, str],
    licence: str | None,
) -> MergeRecipe:
    by_component: dict[str, Any] = dict(record.shared)
    default = by_component.pop("default")
    checkpoint = open_checkpoint(merged)
    active = checkpoint.family.top_k(checkpoint.config)
    fewer = active if active < checkpoint.num_experts and record.method == "bar" else None
    try:
        return MergeRecipe(
            anchor=anchor,
            branches=tuple(branches.values()),
            shared="mean" if record.method == "appended" else default,
            shared_by=by_component,
            as_released=record.as_released,
            top_k=fewer,
            licence=licence,
        )
    except ValueError as error:
        raise BranchError(f"{merged}/{MERGE}: {error}") from None
