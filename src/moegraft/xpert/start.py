"""The values that a target starts with: FFNs from knowledge, its trunk inherited or fresh."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moegraft.checkpoint import Checkpoint
from moegraft.config import recipe_content
from moegraft.errors import IncompatibleError, RecipeError
from moegraft.evals.texts import Text
from moegraft.families import Piece
from moegraft.xpert.experts import donor_fingerprint
from moegraft.xpert.fit import Fitted, fit_outputs
from moegraft.xpert.inherit import Trunk
from moegraft.xpert.knowledge import Knowledge
from moegraft.xpert.resize import Ffns, Resizing
from moegraft.xpert.target import FFN, Stored, Target

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_CONTROLS = ("none", "fresh", "matched", "shuffled")


@dataclass(frozen=True, slots=True)
class Adaptation:
    """How a target starts from knowledge. Defaults are the method's: only FFNs are adapted."""

    resizing: Resizing = field(default_factory=Resizing)
    inherit: tuple[str, ...] = ()
    """Components of the donor's trunk to start from, of `inherit.INHERITABLE`."""
    seed: int = 0
    """Of everything that starts fresh."""
    dtype: str = "float32"
    """Of the checkpoint."""
    control: str = "none"
    """For comparisons, random FFNs instead of the adapted ones: `fresh` as transformers draws
    them, `matched` normal numbers of each matrix' root mean square, `shuffled` its entries."""

    def __post_init__(self) -> None:
        if self.control not in _CONTROLS:
            raise RecipeError(f"--control {self.control}: expected one of {', '.join(_CONTROLS)}")
        if self.dtype not in DTYPES:
            raise RecipeError(f"--dtype {self.dtype}: expected one of {', '.join(DTYPES)}")


class Start:
    """The values that a target starts with, tensor by tensor."""

    def __init__(
        self,
        target: Target,
        adaptation: Adaptation,
        knowledge: Knowledge | None,
        donor: Checkpoint | None = None,
        residual: Int[Tensor, " hidden"] | None = None,
    ) -> None:
        """Check that knowledge, donor and target fit; nothing large is read.

        Args:
            target: the model to be.
            adaptation: how.
            knowledge: of the FFNs; None leaves them fresh.
            donor: the checkpoint that knowledge was taken from, to inherit its trunk.
            residual: the donor's residual dimension behind each of the target's, where another
                start chose them already.

        Raises:
            IncompatibleError: activation or gating differ, another donor, or a trunk that would
                not mean the same in the target.
            RecipeError: a choice that has no effect or cannot be followed.
        """
        self.target, self._how = target, adaptation
        self.dtype = adaptation.dtype
        self._explained: dict[int, float] | None = None
        resizing = adaptation.resizing
        self.ffns: Ffns | None = None
        _check_gating(target)
        if knowledge is not None:
            _check_activation(knowledge, target)
            sizes = target.hidden, target.num_layers
            self.ffns = Ffns(knowledge, resizing, *sizes, residual)
        self._trunk = self._inherit(donor, knowledge) if adaptation.inherit else None

    def _inherit(self, donor: Checkpoint | None, knowledge: Knowledge | None) -> Trunk:
        if donor is None:
            raise RecipeError("--inherit: expected the checkpoint that gives, with --donor")
        if self.ffns is None or knowledge is None:
            raise RecipeError("--inherit: expected knowledge, whose layers and widths it follows")
        if knowledge.about["donor"]["fingerprint"] != donor_fingerprint(donor):
            raise IncompatibleError(
                f"{knowledge.path}: knowledge of {knowledge.about['donor']['name']}, and "
                f"{donor.source} is another checkpoint"
            )
        residual = self.ffns.residual
        moved = len(residual) != knowledge.about["donor"]["hidden"]
        if moved and not self._how.resizing.couple:
            raise RecipeError(
                "--uncoupled: has no residual dimensions that a trunk of another width could "
                "share; drop it or --inherit"
            )
        components = self._how.inherit
        return Trunk(donor, self.target, components, self.ffns.layers, residual)

    def fit(self, host: Any, texts: Sequence[Text], **options: Any) -> dict[int, Fitted]:
        """Replace the down projections by those that fit the donor's FFNs; not in the paper.

        Args:
            host: the donor as a `runtime.Host`.
            texts: of all domains.
            options: of `fit.fit_outputs`.

        Returns:
            What was fitted, by layer: another start with the same FFNs can take it.

        Raises:
            IncompatibleError: no dense target.
            RecipeError: FFNs that do not come from knowledge, or no text.
        """
        if self.ffns is None:
            raise RecipeError("--fit: expected FFNs that start from knowledge")
        found = fit_outputs(host, self.target, self.ffns, texts, **options)
        self.take_fitted(found)
        return found

    def take_fitted(self, found: Mapping[int, Fitted]) -> None:
        """Replace the down projections by what `fit` found for the same FFNs."""
        assert self.ffns is not None
        self.ffns.fitted.update({layer: one.down for layer, one in found.items()})
        self._explained = {layer: one.explained for layer, one in found.items()}

    def source(self, tensor: Stored) -> str:
        """Where a tensor's values come from: `knowledge`, `donor` or `fresh`."""
        if tensor.is_ffn and self.ffns is not None:
            return "fresh" if self._how.control == "fresh" else "knowledge"
        return "donor" if self._trunk is not None and self._trunk.gives(tensor) else "fresh"

    def tensor(self, tensor: Stored) -> Float[Tensor, "*shape"]:
        """The values of `tensor`, in float32.

        Raises:
            IncompatibleError: knowledge does not suffice for an FFN as wide.
            CheckpointError: knowledge or donor are damaged.
        """
        source = self.source(tensor)
        if source == "fresh":
            return self.target.fresh(tensor, self._how.seed)
        if source == "donor":
            assert self._trunk is not None
            return self._trunk.tensor(tensor)
        parts = [self._ffn(piece) for piece in tensor.pieces]
        made = parts[0] if len(parts) == 1 else torch.stack(parts).reshape(tensor.shape)
        return _control(made, self._how, tensor.name)

    def _ffn(self, piece: Piece) -> Tensor:
        key = piece.key
        assert self.ffns is not None and key.layer is not None
        name = key.role.partition(".")[0]
        width = piece.shape[1 if name == "down" else 0]
        return self.ffns.matrices(key.layer, key.expert or 0, width)[name]

    def about(self) -> dict[str, Any]:
        """What is worth recording: sources by number of parameters, and what was mapped to what."""
        numbers: dict[str, int] = dict.fromkeys(("knowledge", "donor", "fresh"), 0)
        for tensor in self.target.tensors:
            numbers[self.source(tensor)] += math.prod(tensor.shape)
        return {
            "target": self.target.family.name,
            "num_parameters": numbers,
            "adaptation": recipe_content(self._how),
            "mapped": None if self.ffns is None else self.ffns.about(),
            "fitted": self._explained,
        }


def _control(made: Tensor, how: Adaptation, name: str) -> Tensor:
    if how.control == "none":
        return made
    digest = hashlib.sha256(f"{how.control} {how.seed} {name}".encode()).digest()
    source = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    if how.control == "shuffled":
        order = torch.randperm(made.numel(), generator=source)
        return made.flatten()[order].reshape(made.shape)
    return torch.randn(made.shape, generator=source) * made.square().mean().sqrt()


def _check_activation(knowledge: Knowledge, target: Target) -> None:
    had = knowledge.about["donor"]["activation"]
    if had != target.activation:
        raise IncompatibleError(
            f"{target.source}: hidden_act is {target.activation}, and {had} in "
            f"{knowledge.about['donor']['name']}, whose experts the FFNs start from; set it so"
        )


def _check_gating(target: Target) -> None:
    """Every layer has FFNs of a gate, an up and a down matrix, each on its own."""
    filled = {key.layer for one in target.tensors if one.is_ffn for key in one.keys}
    roles = {
        f"{key.component} {key.role}"
        for one in target.tensors
        if not one.is_ffn
        for key in one.keys
        if key.component in FFN
        and key.role.startswith(("gate_up.", "down."))
        and not key.role.endswith(".bias")
    }
    if roles or filled != set(range(target.num_layers)):
        raise IncompatibleError(
            f"{target.source}: FFNs of {target.family.name} cannot start from experts; expected "
            "a gate, an up and a down matrix each in every layer"
        )
