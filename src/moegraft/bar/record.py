"""`merge.json`: which branch each expert of a merged model is, how it was merged, what followed."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from moegraft.bar.json_record import check_stages, read_json_record, write_json_record
from moegraft.checkpoint import Checkpoint
from moegraft.errors import BranchError

MERGE = "merge.json"
DIVERGENCE = "divergence.json"
"""How far each shared tensor of each branch was from the anchor."""
SCHEMA = 1

_KEYS = {"method", "anchor", "experts", "shared", "tokens", "stages", "warnings", "as_released"}


@dataclass(frozen=True, slots=True)
class MergeRecord:
    """What a merged model is made of."""

    method: str
    """`bar`, `appended`, `average`, `btx` or `btx-released`."""
    anchor: Mapping[str, Any]
    """Identity of the anchor, and `source`, where it was relative to the merged folder."""
    experts: tuple[Mapping[str, Any], ...]
    """One entry per branch, in the order of the experts: `domain`, `experts` (indices), `source`,
    `content_sha256`, `stages`."""
    shared: Mapping[str, str]
    """The averaging policy by component; `default` for the others."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """New tokens and their ids."""
    stages: tuple[Mapping[str, Any], ...] = ()
    """Router trainings since the merge."""
    warnings: tuple[str, ...] = ()
    as_released: bool = False
    """Anchor experts that moved in branches were averaged."""

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains in the order of their experts."""
        return tuple(expert["domain"] for expert in self.experts)

    def with_stage(self, stage: Mapping[str, Any]) -> "MergeRecord":
        """This record with one more finished stage."""
        return replace(self, stages=(*self.stages, dict(stage)))

    def as_dict(self) -> dict[str, Any]:
        """The content of merge.json."""
        return {"schema": SCHEMA, **asdict(self)}


def relative_source(checkpoint: Checkpoint, out: Path) -> str:
    """Where a source lies as seen from the merged folder, so that both can be moved together.

    A packaged or a Hub source is named as it was given.
    """
    if checkpoint.revision is not None or checkpoint.source.startswith("nano:"):
        return checkpoint.source
    return os.path.relpath(checkpoint.path.resolve(), out.expanduser().resolve())


def source_of(entry: Mapping[str, Any], folder: Path | str) -> str:
    """A source of the record in `folder`, as it can be opened from here."""
    source = str(entry["source"])
    place = Path(folder).expanduser() / source
    return os.path.normpath(place) if place.is_dir() else source


def rebased(record: MergeRecord, old: Path, new: Path) -> MergeRecord:
    """The record of a model that is written to `new` after `old`, with sources seen from there."""

    def moved(entry: Mapping[str, Any]) -> dict[str, Any]:
        place = old.expanduser().resolve() / str(entry["source"])
        if not place.is_dir():
            return dict(entry)
        return {**entry, "source": os.path.relpath(place.resolve(), new.expanduser().resolve())}

    experts = tuple(moved(expert) for expert in record.experts)
    return replace(record, anchor=moved(record.anchor), experts=experts)


def read_record(folder: Path | str) -> MergeRecord:
    """The record of the merged model in `folder`.

    Raises:
        BranchError: there is none, or it is not of this form.
    """
    fields = read_json_record(folder, MERGE, SCHEMA, what="a merge", made_by="moegraft bar merge")
    file = Path(folder).expanduser() / MERGE
    wrong = sorted(_KEYS ^ fields.keys())
    if wrong:
        told = "unknown key" if wrong[0] in fields else "lacks"
        raise BranchError(f"{file}: {told} {wrong[0]!r}")
    _check(str(file), fields)
    for key in ("experts", "stages", "warnings"):
        fields[key] = tuple(fields[key])
    return MergeRecord(**fields)


_TYPES = {
    "method": str,
    "anchor": dict,
    "experts": list,
    "shared": dict,
    "tokens": dict,
    "warnings": list,
    "as_released": bool,
}
_OF_EXPERT = {"domain": str, "experts": list, "source": str, "content_sha256": str}


def _check(where: str, fields: Mapping[str, Any]) -> None:
    """Raise BranchError for a value of another type, down to the entries."""
    check_stages(where, fields["stages"])
    for key, kind in _TYPES.items():
        if not isinstance(fields[key], kind):
            raise BranchError(f"{where}: {key}: got {fields[key]!r:.60}")
    for key, part in (("anchor", "source"), ("shared", "default")):
        if not isinstance(fields[key].get(part), str):
            raise BranchError(f"{where}: {key}.{part}: got {fields[key].get(part)!r:.60}")
    for number, expert in enumerate(fields["experts"]):
        entry = expert if isinstance(expert, dict) else {}
        for key, kind in _OF_EXPERT.items():
            if not isinstance(entry.get(key), kind):
                raise BranchError(f"{where}: experts.{number}.{key}: got {entry.get(key)!r:.60}")
        check_stages(f"{where}: experts.{number}", entry.get("stages"))


def write_record(folder: Path | str, record: MergeRecord) -> None:
    """Write `record` into the merged folder, in one step.

    Raises:
        OutputError: it cannot be written.
    """
    write_json_record(folder, MERGE, record.as_dict())
