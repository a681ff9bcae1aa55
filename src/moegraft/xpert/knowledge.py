"""Knowledge of experts on disk: one safetensors file per layer, what made it, and a model card.

knowledge = open_knowledge("know")            # headers only
knowledge.layer(0)["gate"].matrix()           # [ffn, hidden]
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from moegraft.checkpoint import Checkpoint
from moegraft.checkpoint.writer import staged_output
from moegraft.errors import CheckpointError, IncompatibleError, OutputError, RecipeError
from moegraft.transfer.publish import base_model
from moegraft.xpert.decompose import METHODS, Decomposition, Factored, decompose_layer
from moegraft.xpert.experts import (
    MATRICES,
    check_top,
    donor_fingerprint,
    load_experts,
    moe_layers,
)
from moegraft.xpert.knowledge_card import knowledge_card
from moegraft.xpert.selection import chosen_experts

T = TypeVar("T")

CONFIG = "knowledge.json"
_PARTS = ("core", "rows", "columns")


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Knowledge of experts, opened by its description; layers are read one at a time."""

    path: Path
    about: Mapping[str, Any]
    """knowledge.json: donor, selection, decomposition, and diagnostics by layer and matrix."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The donor's layers that knowledge was taken from."""
        return tuple(entry["layer"] for entry in self.about["layers"])

    @property
    def num_groups(self) -> int:
        """Groups of experts that every layer was cut into."""
        return self.about["decomposition"]["num_groups"]

    def layer(self, layer: int, group: int = 0) -> dict[str, Factored]:
        """The factors of one group of experts of a layer by matrix.

        Raises:
            CheckpointError: missing or damaged.
        """
        entry = next(entry for entry in self.about["layers"] if entry["layer"] == layer)
        diagnostics = entry["groups"][group]["matrices"]
        file = self.path / _file(layer)
        try:
            with safe_open(file, "pt") as tensors:
                parts = _parts(tensors, group)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: not readable knowledge: {error}") from None
        for name, part in parts:
            if not torch.isfinite(parts[name, part]).all():
                raise CheckpointError(f"{file}: {name} has NaN or infinite numbers")
        _check_shapes(parts, self.about["donor"]["hidden"], file)
        return {
            name: Factored(
                parts[name, "core"],
                parts.get((name, "rows")),
                parts.get((name, "columns")),
                diagnostics[name],
            )
            for name in MATRICES
        }


def _check_shapes(parts: Mapping[tuple[str, str], Tensor], hidden: int, file: Path) -> None:
    """Gate [ffn, hidden], up [ffn, hidden] and down [hidden, ffn], from factors that fit cores."""
    shapes = {}
    for name in MATRICES:
        core = parts[name, "core"].shape
        sides = [parts.get((name, part)) for part in ("rows", "columns")]
        inner = [n if side is None else side.shape[1] for side, n in zip(sides, core, strict=True)]
        outer = [n if side is None else side.shape[0] for side, n in zip(sides, core, strict=True)]
        shapes[name] = outer if inner == [*core] else []
    ffn = shapes["gate"][:1]
    if shapes != {"gate": [*ffn, hidden], "up": [*ffn, hidden], "down": [hidden, *ffn]} or not ffn:
        raise CheckpointError(
            f"{file}: damaged: its matrices do not fit each other; decompose again"
        )


def _parts(tensors: Any, group: int) -> dict[tuple[str, str], Tensor]:
    names = set(tensors.keys())
    return {
        (name, part): tensors.get_tensor(f"{group}.{name}.{part}")
        for name in MATRICES
        for part in _PARTS
        if part == "core" or f"{group}.{name}.{part}" in names
    }


def open_knowledge(path: Path | str) -> Knowledge:
    """Open what `decompose_experts` wrote.

    Raises:
        CheckpointError: no knowledge stands there.
    """
    path = Path(path)
    try:
        about = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(
            f"{path}: no readable {CONFIG}; expected a folder of `moegraft xpert decompose`"
        ) from None
    if not _is_whole(about):
        raise CheckpointError(
            f"{path / CONFIG}: damaged, or of another version; make it again with `moegraft xpert "
            "decompose`"
        )
    return Knowledge(path, about)


def _is_whole(about: Any) -> bool:
    """Whether everything is there that starting a model asks for."""
    try:
        donor, how = about["donor"], about["decomposition"]
        matrices = [group["matrices"] for entry in about["layers"] for group in entry["groups"]]
        layers = [entry["layer"] for entry in about["layers"]]
        return (
            {"name", "base_model", "family", "fingerprint", "activation", "hidden"} <= {*donor}
            and {"score", "num_best"} <= {*about["selection"]}
            and isinstance(donor["hidden"], int)
            and how["method"] in METHODS
            and all(
                isinstance(own[name]["norm_ratio"], float) for own in matrices for name in MATRICES
            )
            and len({*layers}) == len(layers) > 0
            and len(matrices) == len(layers) * how["num_groups"]
        )
    except (KeyError, TypeError):
        return False


def decompose_experts(
    donor: Checkpoint,
    selection: Mapping[str, Any],
    how: Decomposition,
    out: Path | str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    on_step: Callable[[int, int], None] = lambda num_done, num_layers: None,
) -> Knowledge:
    """Decompose the chosen experts layer by layer and save what they have in common.

    Peak memory is the chosen experts of one layer, a few times over. Nothing is left behind when
    it fails.

    Args:
        donor: the checkpoint whose experts were chosen.
        selection: content of selection.json (`Identification.as_dict`).
        how: the decomposition.
        out: a folder that does not exist or is empty.
        device: where to compute.
        dtype: of the saved factors; computed in float32.
        on_step: called after each layer with the number of layers done, and of all.

    Raises:
        IncompatibleError: the selection is another model's, or its layers have no experts.
        RecipeError: ranks or experts that the donor has not.
        CheckpointError: weights that are not finite.
        OutputError: `out` cannot be written.
    """
    chosen = check_selection(donor, selection)
    if selection["num_best"] % how.num_groups:
        raise RecipeError(
            f"--groups {how.num_groups}: {selection['num_best']} experts per layer were chosen; "
            "expected a number that divides them; choose more with `identify --top`"
        )
    entries = []
    with staged_output(out, inputs=[donor.path]) as folder:
        for number, (layer, experts) in enumerate(chosen.items(), start=1):
            groups = []
            for group in _grouped(experts, how.num_groups):
                stack = load_experts(donor, layer, group, device=device)
                groups.append(decompose_layer(stack, how, f"{donor.source}, layer {layer}"))
            _save(folder / _file(layer), groups, dtype)
            names = [entry["expert"] for entry in _layer_entry(selection, layer)["chosen"]]
            entries.append(
                {
                    "layer": layer,
                    "groups": [
                        {"experts": own, "matrices": {n: one.diagnostics for n, one in f.items()}}
                        for own, f in zip(_grouped(names, how.num_groups), groups, strict=True)
                    ],
                }
            )
            on_step(number, len(chosen))
        about = _about(donor, selection, how, entries, dtype)
        (folder / "README.md").write_text(knowledge_card(about), encoding="utf-8")
        (folder / CONFIG).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return Knowledge(Path(out), about)


def check_selection(donor: Checkpoint, selection: Mapping[str, Any]) -> dict[int, list[int]]:
    """Chosen experts by layer, as numbers; raises if they cannot be this donor's."""
    layers, wanted = moe_layers(donor), chosen_experts(selection)
    num_experts, source, known = (selection[k] for k in ("num_experts", "source", "fingerprint"))
    if known is not None and known != donor_fingerprint(donor):
        raise IncompatibleError(
            f"the selection was made for {source}, and {donor.source} is another checkpoint"
        )
    if num_experts != donor.num_experts or not set(wanted) <= set(layers):
        raise IncompatibleError(
            f"the selection of {source} has layers {_short(wanted)} of {num_experts} experts; "
            f"{donor.source} has layers {_short(layers)} of {donor.num_experts}"
        )
    check_top(donor, selection["num_best"])
    return {int(layer): experts for layer, experts in wanted.items()}


def _short(layers: Any) -> str:
    return ", ".join(map(str, list(layers)[:4])) + (", ..." if len(layers) > 4 else "")


def _grouped(experts: Sequence[T], num_groups: int) -> list[Sequence[T]]:
    """Neighbours by rank, best group first."""
    size = len(experts) // num_groups
    return [experts[start : start + size] for start in range(0, len(experts), size)]


def _save(file: Path, groups: Sequence[Mapping[str, Factored]], dtype: torch.dtype) -> None:
    tensors = {
        f"{group}.{name}.{part}": value.to(dtype).cpu().contiguous()
        for group, found in enumerate(groups)
        for name, factored in found.items()
        for part in _PARTS
        if (value := getattr(factored, part)) is not None
    }
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:  # it wraps what the system says, as text
        raise OutputError(f"{file.name}: not written: {error}; nothing was left behind") from None


def _layer_entry(selection: Mapping[str, Any], layer: int) -> Mapping[str, Any]:
    return next(entry for entry in selection["layers"] if entry["layer"] == layer)


def _about(
    donor: Checkpoint,
    selection: Mapping[str, Any],
    how: Decomposition,
    entries: list[dict[str, Any]],
    dtype: torch.dtype,
) -> dict[str, Any]:
    sizes = donor.family.sizes(donor.config)
    local = donor.path.name if Path(donor.source).is_dir() else donor.source
    return {
        "schema": 1,
        "donor": {
            "name": local,
            "base_model": base_model(donor),
            "revision": donor.revision,
            "fingerprint": donor_fingerprint(donor),
            "family": donor.family.name,
            "activation": sizes.get("hidden_act"),
            "hidden": sizes.get("hidden_size"),
            "num_layers": donor.num_layers,
            "num_bytes": donor.num_bytes,
        },
        "selection": {
            key: selection.get(key) for key in ("score", "num_best", "domains", "num_tokens")
        },
        "decomposition": {
            "method": how.method,
            "ranks": [how.ranks.in_out, how.ranks.down, how.ranks.energy],
            "num_sweeps": how.num_sweeps,
            "align": how.align,
            "safe": how.safe,
            "num_groups": how.num_groups,
        },
        "dtype": str(dtype).removeprefix("torch."),
        "layers": entries,
    }


def _file(layer: int) -> str:
    return f"layer-{layer:03}.safetensors"
