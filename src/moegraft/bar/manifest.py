"""`branch.json`: what a branch started from, what must not move in it, and the stages it ran.

{"schema": 1, "kind": "dense" | "appended", "domain": "math",
 "anchor": {...}, "frozen": {name: sha256}, "shared": {name: sha256}, "stages": [{...}, ...], ...}

Names are canonical (`bar.names`). `frozen` holds what no stage may move: the anchor's expert and
its router row, or, where experts were appended to a MoE, everything but the new experts and
their rows. `shared` holds the other tensors as they were at the start; stages may open them.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from moegraft.bar.json_record import check_stages, read_json_record, write_json_record
from moegraft.checkpoint import Checkpoint
from moegraft.checkpoint.card import public_name
from moegraft.errors import BranchError

BRANCH = "branch.json"
SCHEMA = 1

Kind = Literal["dense", "appended"]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record of one branch."""

    kind: Kind
    """`dense`: anchor FFN and one domain expert; `appended`: experts added to a MoE."""
    domain: str
    anchor: Mapping[str, Any]
    """`identity` of the checkpoint that the branch grew from."""
    frozen: Mapping[str, str]
    """Sha256 by canonical name, rows in brackets, of what never moves."""
    shared: Mapping[str, str]
    """Sha256 by canonical name of the other shared tensors at the start."""
    stages: tuple[Mapping[str, Any], ...] = ()
    """What was trained, in order; each has at least `stage` and `tokens`."""
    num_appended: int = 1
    """Domain experts per layer."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """New tokens and their ids."""
    start: Mapping[str, Any] = field(default_factory=dict)
    """How the branch was initialised and how far that is from the anchor."""

    def with_stage(self, stage: Mapping[str, Any]) -> "Manifest":
        """This manifest with one more finished stage."""
        return replace(self, stages=(*self.stages, dict(stage)))

    def as_dict(self) -> dict[str, Any]:
        """The content of branch.json."""
        return {"schema": SCHEMA, **asdict(self), "stages": [dict(stage) for stage in self.stages]}


def identity(checkpoint: Checkpoint, hashes: Mapping[str, str]) -> dict[str, Any]:
    """What a checkpoint is, without any local path.

    Args:
        checkpoint: the anchor.
        hashes: sha256 of each of its tensors, by name.
    """
    lines = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes))
    return {
        "name": public_name(checkpoint),
        "revision": checkpoint.revision,
        "family": checkpoint.family.name,
        "content_sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }


def read_manifest(folder: Path | str) -> Manifest:
    """The manifest of the branch in `folder`.

    Raises:
        BranchError: there is none, or it is not of this form; names the file and the key.
    """
    made_by = "moegraft bar branch"
    fields = read_json_record(folder, BRANCH, SCHEMA, what="a branch's manifest", made_by=made_by)
    file = Path(folder).expanduser() / BRANCH
    _check(file, fields)
    fields["stages"] = tuple(fields.get("stages", ()))
    return Manifest(**fields)


def write_manifest(folder: Path | str, manifest: Manifest) -> None:
    """Write `manifest` into the branch's folder, in one step.

    Raises:
        OutputError: it cannot be written.
    """
    write_json_record(folder, BRANCH, manifest.as_dict())


_TYPES: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "domain": str,
    "anchor": dict,
    "frozen": dict,
    "shared": dict,
    "stages": list,
    "num_appended": int,
    "tokens": dict,
    "start": dict,
}
_NEEDED = ("kind", "domain", "anchor", "frozen", "shared")


def _check(file: Path, content: Mapping[str, Any]) -> None:
    for key in _NEEDED:
        if key not in content:
            raise BranchError(f"{file}: lacks {key!r}")
    for key, value in content.items():
        if key not in _TYPES:
            raise BranchError(f"{file}: unknown key {key!r}")
        if not isinstance(value, _TYPES[key]):
            raise BranchError(f"{file}: {key}: got {value!r:.60}")
    check_stages(str(file), content.get("stages", []))
    for key, kind in (("frozen", str), ("shared", str), ("tokens", int)):
        for name, value in content.get(key, {}).items():
            if not isinstance(value, kind):
                raise BranchError(f"{file}: {key}: {name}: got {value!r:.60}")
    if content.get("num_appended", 1) < 1:
        raise BranchError(
            f"{file}: num_appended: got {content['num_appended']}, expected 1 or more"
        )
    if content["kind"] not in get_args(Kind):
        raise BranchError(f"{file}: kind: got {content['kind']!r}, expected dense or appended")
