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
from moegraft.errors import CheckpointError, IncompatibleError, RecipeError
from moegraft.transfer.publish import base_model
from moegraft.xpert.decompose import Decomposition, Factored, decompose_layer
from moegraft.xpert.experts import (
    MATRICES,
    check_top,
    donor_fingerprint,
    load_experts,
    moe_layers,
)
from moegraft.xpert.identify import expert_number

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
        return {
            name: Factored(
                parts[name, "core"],
                parts.get((name, "rows")),
                parts.get((name, "columns")),
                diagnostics[name],
            )
            for name in MATRICES
        }


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
    return Knowledge(path, about)


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
        (folder / "README.md").write_text(card(about), encoding="utf-8")
        (folder / CONFIG).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return Knowledge(Path(out), about)


def check_selection(donor: Checkpoint, selection: Mapping[str, Any]) -> dict[int, list[int]]:
    """Chosen experts by layer, as numbers; raises if they cannot be this donor's."""
    layers = moe_layers(donor)
    try:
        num_best, known = selection["num_best"], selection["fingerprint"]
        wanted = {
            entry["layer"]: [
                expert_number(expert["expert"], donor.num_experts) for expert in entry["chosen"]
            ]
            for entry in selection["layers"]
        }
        num_experts, source = selection["num_experts"], selection["source"]
    except (KeyError, TypeError):
        raise RecipeError("no selection of `moegraft xpert identify`") from None
    if known is not None and known != donor_fingerprint(donor):
        raise IncompatibleError(
            f"the selection was made for {source}, and {donor.source} is another checkpoint"
        )
    if num_experts != donor.num_experts or not set(wanted) <= set(layers):
        raise IncompatibleError(
            f"the selection of {source} has layers {_short(wanted)} of {num_experts} experts; "
            f"{donor.source} has layers {_short(layers)} of {donor.num_experts}"
        )
    check_top(donor, num_best)
    return wanted


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
    save_file(tensors, file, metadata={"format": "pt"})


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


def card(about: Mapping[str, Any]) -> str:
    """A model card in words; no local path is in it."""
    donor, how, selection = about["donor"], about["decomposition"], about["selection"]
    rows = "\n".join(
        f"| {entry['layer']} | {', '.join(map(str, group['experts']))} | "
        + " | ".join(_cell(group["matrices"][name]) for name in MATRICES)
        + " |"
        for entry in about["layers"]
        for group in entry["groups"]
    )
    return f"""---
library_name: moegraft
base_model: [{donor["base_model"]}]
tags: [moegraft, xpert, mixture-of-experts]
---

# Expert knowledge of {donor["name"]}

No model by itself: what {selection["num_best"]} experts per layer of {donor["name"]} \
({donor["family"]}) have in common, to start the FFNs of other models from \
(XPERT, arXiv:2605.08842). Made with moegraft.

Experts were chosen by `{selection["score"]}` over {", ".join(selection["domains"] or ["?"])}. \
Method `{how["method"]}`{", neurons aligned" if how["align"] else ""}. The donor's licence applies.

| layer | experts | gate | up | down |
| --- | --- | --- | --- | --- |
{rows}

Cells: ranks of rows x columns x experts; retained energy; norm against the experts' mean norm.
"""


def _cell(about: Mapping[str, Any]) -> str:
    kept = about["retained_energy"]
    energy = "-" if kept is None else f"{kept:.3f}"
    return f"{' x '.join(map(str, about['ranks']))}; {energy}; {about['norm_ratio']:.2f}"


def _file(layer: int) -> str:
    return f"layer-{layer:03}.safetensors"
