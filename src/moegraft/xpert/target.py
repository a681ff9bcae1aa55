"""A target on paper: config.json to the tensors it will have, and their fresh random values."""

import copy
import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from moegraft.errors import IncompatibleError, RecipeError
from moegraft.families import Family, Key, Piece, find_family
from moegraft.families.names import LEAVES, Rule
from moegraft.xpert.experts import MATRICES

_REFUSALS = (
    *(ValueError, TypeError, KeyError, AttributeError, ArithmeticError),
    StrictDataclassError,
)
FFN = ("mlp", "experts", "shared_experts")
"""Components whose gate, up and down matrices are FFNs."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the target as it will be stored."""

    name: str
    live: str
    """Of the parameter that it is, or is a part of, in the live model."""
    pieces: tuple[Piece, ...]
    """One, or several where the family stacks its experts on disk too."""
    shape: tuple[int, ...]

    @property
    def keys(self) -> tuple[Key, ...]:
        """Of the pieces."""
        return tuple(piece.key for piece in self.pieces)

    @property
    def is_ffn(self) -> bool:
        """Whether it is a gate, up or down matrix."""
        key = self.keys[0]
        return key.component in FFN and key.role in {f"{name}.weight" for name in MATRICES}


@dataclass(frozen=True)
class Target:
    """A model that does not exist yet; its parameters stand on the meta device."""

    source: str
    config: PreTrainedConfig
    family: Family
    model: PreTrainedModel

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.config.get_text_config().hidden_size

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return self.config.get_text_config().num_hidden_layers

    @property
    def activation(self) -> str | None:
        """Of the FFN."""
        return getattr(self.config.get_text_config(), "hidden_act", None)

    @cached_property
    def tensors(self) -> tuple[Stored, ...]:
        """Every tensor in the order of the model, experts one by one where the family does so.

        Raises:
            FamilyError: a name that the family does not know.
        """
        found = []
        for live, tensor in _kept(self.model).items():
            pieces = self.family.pieces(live, tensor.shape, 4 * tensor.numel())
            names = [_published(self.family, piece.key) for piece in pieces]
            if None in names or pieces[0].key.component not in ("experts", "router"):
                found.append(Stored(live, live, pieces, tuple(tensor.shape)))
                continue
            found += [
                Stored(str(name), live, (piece,), piece.shape)
                for name, piece in zip(names, pieces, strict=True)
            ]
        return tuple(found)

    def fresh(self, tensor: Stored, seed: int) -> Float[Tensor, "*shape"]:
        """What transformers would start `tensor` with, in float32.

        Every parameter has a seed of its own, made of `seed` and its name: its values depend
        neither on what else is drawn nor on which other tensors come from knowledge.
        """
        whole = self._draw(tensor.live, seed)
        if tensor.shape == tuple(whole.shape):
            return whole
        (piece,) = tensor.pieces
        return whole.flatten()[piece.offset // 4 :][: piece.nbytes // 4].reshape(piece.shape)

    @torch.no_grad()
    def _draw(self, live: str, seed: int) -> Tensor:
        path, _, name = live.rpartition(".")
        own = copy.copy(self.model.get_submodule(path))
        own._parameters = {n: _empty(p) for n, p in own._parameters.items()}
        own._buffers = {n: _empty(b) for n, b in own._buffers.items()}
        digest = hashlib.sha256(f"{seed} {live}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:7], "big"))
            self.model._init_weights(own)
        drawn = getattr(own, name).detach()
        assert not drawn.isnan().any(), f"transformers gives {live} no value"
        return drawn


def _kept(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters, tied ones once, and the buffers that are saved."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return parameters | {n: t for n, t in model.state_dict().items() if n not in names}


def _empty(tensor: Tensor | None) -> nn.Parameter | None:
    """Not a number everywhere, so that what is not initialised shows."""
    if tensor is None:
        return None
    return nn.Parameter(torch.full(tensor.shape, torch.nan), requires_grad=False)


def read_target(source: Path | str) -> Target:
    """The target that config.json describes.

    Args:
        source: the file, or its folder.

    Raises:
        RecipeError: no readable config.json.
        IncompatibleError: transformers refuses it, or no text could pass through the model.
        FamilyError: a family that is not in the catalogue.
    """
    path = Path(source)
    file = path / "config.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or "model_type" not in content:
        raise RecipeError(
            f"{file}: no readable config.json of a model; expected one with model_type"
        )
    return make_target(content, str(file))


def make_target(content: Mapping[str, Any], where: str) -> Target:
    """As `read_target`, from the content of config.json; `where` opens messages."""
    family = find_family(dict(content), where=where)
    config = read_config(content, where)
    config.dtype = torch.float32
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (*_REFUSALS, RuntimeError) as error:
        raise _refusal(where, error) from None
    config.architectures = [type(model).__name__]
    family = family.for_config(config.to_dict())
    _check_sizes(family, config, model, where)
    return Target(where, config, family, model)


def _check_sizes(
    family: Family, config: PreTrainedConfig, model: PreTrainedModel, where: str
) -> None:
    """Sizes that transformers builds and no text can pass through."""
    empty = next((name for name, one in model.named_parameters() if not one.numel()), None)
    if empty is not None or config.get_text_config().num_hidden_layers < 1:
        what = "the model has no layers" if empty is None else f"{empty} is empty"
        raise IncompatibleError(f"{where}: {what}; expected sizes of at least 1")
    content = config.to_dict()
    num_experts, top_k = family.num_experts(content), family.top_k(content)
    if top_k > num_experts:
        raise IncompatibleError(
            f"{where}: {top_k} experts per token of {num_experts}; expected at most as many"
        )


def read_config(content: Mapping[str, Any], where: str) -> PreTrainedConfig:
    """The config of transformers, every default filled in.

    Raises:
        IncompatibleError: transformers refuses it.
    """
    own = {key: value for key, value in content.items() if key != "model_type"}
    try:
        return AutoConfig.for_model(content["model_type"], **own)
    except _REFUSALS as error:
        raise _refusal(where, error) from None


def _refusal(where: str, error: BaseException) -> IncompatibleError:
    said = " ".join(str(error).split())[:200]
    return IncompatibleError(f"{where}: transformers cannot build this model: {said}")


def _published(family: Family, key: Key) -> str | None:
    """The name under which a piece is stored alone; None if it never is."""
    for rule in family.rules:
        if rule.component != key.component or rule.stacked or len(rule.roles) != 1:
            continue
        leaf = _leaf(rule, key.role)
        if leaf is not None:
            holes = {"root": family.roots[0], "layer": key.layer, "expert": key.expert}
            return rule.template.format(**holes, leaf=leaf)
    return None


def _leaf(rule: Rule, role: str) -> str | None:
    if "{leaf}" not in rule.template:
        return "" if rule.roles == (role,) else None
    head, _, leaf = role.rpartition(".")
    return leaf if leaf in LEAVES and rule.roles == (head,) else None
