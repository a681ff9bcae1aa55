"""Embeddings, attention, norms and head of a target from the donor, at its own width."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moegraft.checkpoint import Checkpoint, load_tensor
from moegraft.errors import CheckpointError, IncompatibleError, RecipeError
from moegraft.families import Key
from moegraft.xpert.leverage import choose, shares
from moegraft.xpert.target import Stored, Target
from moegraft.xpert.trunk_fit import ATTENTION, PROJECTIONS, Fit

INHERITABLE = ("embedding", "attention", "norm", "lm_head")


def parse_inherit(text: str) -> tuple[str, ...]:
    """`none`, `trunk` (everything that is no FFN and no router), or components with commas.

    Raises:
        RecipeError: anything else.
    """
    if text in ("none", "trunk"):
        return INHERITABLE if text == "trunk" else ()
    parts = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not set(parts) <= set(INHERITABLE):
        raise RecipeError(
            f"--inherit {text}: expected none, trunk, or some of {', '.join(INHERITABLE)}"
        )
    return parts


class Trunk:
    """What a target takes from its donor beside the FFNs."""

    def __init__(
        self,
        donor: Checkpoint,
        target: Target,
        components: Sequence[str],
        layers: Sequence[int],
        residual: Int[Tensor, " hidden"],
    ) -> None:
        """Check that it fits; nothing is read yet.

        Heads are kept or doubled whole, by the norm of their output weights. Doubled residual
        dimensions are read with 1 / copies. A norm over fewer dimensions, of the stream or of all
        heads together, takes its mean square over fewer; that cannot be made up for.

        Args:
            donor: the checkpoint that gives.
            target: the model that receives.
            components: of `INHERITABLE`; attention brings its q/k norms along.
            layers: the donor's layer behind each of the target's.
            residual: the donor's residual dimension behind each of the target's.

        Raises:
            IncompatibleError: a component would not mean the same in the target.
        """
        self._donor, self._target, self._layers = donor, target, layers
        self._residual, self._share = residual, shares(residual)
        self._wanted = {
            component: name
            for name in components
            for component in (ATTENTION if name == "attention" else (name,))
        }
        fit = Fit(donor, target, tuple(layers))
        fit.check(components)
        self._old, self._new = fit.heads
        ties = target.config.get_text_config().tie_word_embeddings
        if "embedding" in components and ties and self._share.min() < 1:
            raise IncompatibleError(
                f"{target.source}: cannot inherit embedding: tie_word_embeddings is true, so "
                "residual dimensions that are doubled would count twice in the logits; set it to "
                "false, or leave embedding out of --inherit"
            )
        self._groups: dict[int, Int[Tensor, " group"]] = {}

    def gives(self, tensor: Stored) -> bool:
        """Whether `tensor` is inherited."""
        return tensor.keys[0].component in self._wanted

    def tensor(self, tensor: Stored) -> Float[Tensor, "*shape"]:
        """Its values, in float32.

        Raises:
            CheckpointError: the donor's are not finite.
        """
        (key,) = tensor.keys
        part = key.role.partition(".")[0]
        if key.component in ATTENTION:
            made = self._attention(key, part, tensor.shape)
        elif part in ("embed_tokens", "lm_head"):
            made = self._read(key)[:, self._residual]
        else:
            made = self._read(key)[self._residual]
        made = made * self._share if part == "lm_head" else made
        if tuple(made.shape) != tensor.shape:
            raise IncompatibleError(
                f"{self._target.source}: {tensor.name} has shape {list(tensor.shape)}; "
                f"{self._donor.source} gives {list(made.shape)}"
            )
        return made

    def _attention(self, key: Key, part: str, shape: tuple[int, ...]) -> Tensor:
        old = self._read(key)
        same_width = torch.equal(self._residual, torch.arange(len(self._residual)))
        if part not in PROJECTIONS | {"q_norm", "k_norm"}:
            return old  # latent attention: checked to be of the same sizes
        assert key.layer is not None
        groups = self._chosen_groups(key.layer)
        rows = self._old.rows(groups, queries=part in ("q_proj", "q_norm", "o_proj"))
        if part == "o_proj":
            if old.dim() == 1:
                return old[self._residual]
            counts = shares(groups).repeat_interleave(self._old.size * self._old.num_queries)
            return old[self._residual][:, rows] * counts
        if key.component == "qk_norm":
            return old if tuple(old.shape) == shape and len(old) == self._old.size else old[rows]
        if old.dim() == 1:
            return old[rows]
        return old[rows] if same_width else old[rows][:, self._residual] * self._share

    def _chosen_groups(self, layer: int) -> Int[Tensor, " group"]:
        """The donor's group of heads behind each of the target's in one layer."""
        if self._old.num_groups == self._new.num_groups:
            return torch.arange(self._old.num_groups)
        if layer not in self._groups:
            out = self._read(Key("attention", layer, None, "o_proj.weight"))
            squares = out.square().sum(dim=0).reshape(self._old.num_groups, -1).sum(dim=1)
            self._groups[layer] = choose(squares, self._new.num_groups)
        return self._groups[layer]

    def _read(self, key: Key) -> Tensor:
        layer = None if key.layer is None else self._layers[key.layer]
        pieces = self._donor.pieces()
        wanted = key._replace(layer=layer)
        if wanted not in pieces and key.component == "lm_head":
            wanted = Key("embedding", None, None, "embed_tokens.weight")  # the donor ties them
        found = load_tensor(pieces[wanted]).float()
        if not torch.isfinite(found).all():
            raise CheckpointError(f"{self._donor.source}: {wanted} has NaN or infinite weights")
        return found
