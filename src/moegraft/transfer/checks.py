"""Whether a donor's tensors fit into the host: family, config, names, shapes, dtypes, scales."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moegraft.checkpoint import Checkpoint, StoredPiece
from moegraft.errors import IncompatibleError
from moegraft.families import Key
from moegraft.transfer.compatibility import config_differences, severity
from moegraft.transfer.scope import Scope, Slot, slot_of

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Dtypes that numbers can be mixed in and cast between."""

_NARROW = frozenset(
    {"F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4"}
)

_COMPANIONS = (
    "weight_scale_inv",
    "weight_scale",
    "weight_scale_2",
    "input_scale",
    "weight_packed",
    "weight_shape",
    "blocks",
    "scales",
)


@dataclass(frozen=True, slots=True)
class DonorCheck:
    """What the check of one donor found."""

    cast: frozenset[Slot]
    """Slots whose dtype differs from the host's and will be converted."""
    warnings: tuple[str, ...]


def check_donor(
    name: str,
    host: Checkpoint,
    donor: Checkpoint,
    rules: Mapping[Slot, str],
    scopes: Sequence[Scope],
    *,
    cast: bool,
) -> DonorCheck:
    """Check that donor `name` can fill the slots in `rules` (slot to mixing rule) of the host.

    Raises:
        IncompatibleError: the first disagreement, with the tensor's name; differences of dtype
            too, unless `cast`.
    """
    warnings = _check_configs(name, host, donor, frozenset(slot.component for slot in rules))
    ours, theirs = host.pieces(), donor.pieces()
    converted = set()
    quantised = _quantised(ours) | _quantised(theirs)
    for key, stored in ours.items():
        slot = Slot(*key[:3])
        rule = rules.get(slot)
        if rule is None:
            continue
        given = theirs.get(key)
        if given is None:
            raise IncompatibleError(
                f"donor {name!r} has no counterpart of {stored.name!r} ({key}); "
                "a component moves with all its tensors or not at all"
            )
        if stored.piece.shape != given.piece.shape:
            raise IncompatibleError(
                f"{stored.name}: host has shape {list(stored.shape)}, donor {name!r} "
                f"{list(given.shape)} for {key}; shapes must be equal"
            )
        if stored.tensor.dtype != given.tensor.dtype:
            _check_cast(name, stored, given, _weight_of(key) in quantised, cast)
            converted.add(slot)
        if rule != "take" and (_weight_of(key) in quantised or stored.dtype not in FLOATS):
            raise IncompatibleError(
                f"{stored.name}: quantised tensors cannot be mixed by {rule!r}; use 'take'"
            )
    _check_nothing_left(name, ours, theirs, scopes)
    return DonorCheck(frozenset(converted), tuple(warnings))


def _check_configs(
    name: str, host: Checkpoint, donor: Checkpoint, moved: frozenset[str]
) -> list[str]:
    if host.family.name != donor.family.name:
        raise IncompatibleError(
            f"donor {name!r} ({donor.source}) is of family {donor.family.name!r}, the host "
            f"({host.source}) of {host.family.name!r}; parts move only within one family"
        )
    warnings = []
    for difference in config_differences(host, donor):
        level = severity(difference, moved)
        if level == "error":
            raise IncompatibleError(
                f"donor {name!r} does not fit: {difference}; these must be equal to move "
                f"{', '.join(sorted(moved & set(difference.components)) or sorted(moved))}"
            )
        if level == "warning":
            warnings.append(f"{difference} ({name}); the result uses the host's")
    return warnings


def _check_cast(
    name: str, ours: StoredPiece, theirs: StoredPiece, scaled: bool, cast: bool
) -> None:
    kinds = (ours.dtype, theirs.dtype)
    told = f"{ours.name}: host has dtype {kinds[0]}, donor {name!r} {kinds[1]}"
    if scaled or not FLOATS.issuperset(kinds):
        raise IncompatibleError(f"{told}; quantised tensors cannot be converted")
    if not cast:
        raise IncompatibleError(
            f"{told}; `transfer --cast` converts to the host's (not byte-exact)"
        )


def _check_nothing_left(
    name: str,
    ours: Mapping[Key, StoredPiece],
    theirs: Mapping[Key, StoredPiece],
    scopes: Sequence[Scope],
) -> None:
    for key, given in theirs.items():
        if key not in ours and any(scope.covers(slot_of(key)) for scope in scopes):
            raise IncompatibleError(
                f"donor {name!r} has {given.name!r} ({key}), which the host lacks, so it "
                "would be lost; a component moves with all its tensors or not at all"
            )


def _weight_of(key: Key) -> Key:
    """`key` with the role cut down to the weight that scales and blocks belong to."""
    return key._replace(role=key.role.split(".", 1)[0])


def _quantised(pieces: Mapping[Key, StoredPiece]) -> set[Key]:
    """Every weight that is stored with scales or in a narrow dtype."""
    return {
        _weight_of(key)
        for key, stored in pieces.items()
        if key.role.endswith(_COMPANIONS) or stored.tensor.dtype in _NARROW
    }
