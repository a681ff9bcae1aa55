"""A start for the router rows of appended experts that takes no token from an old expert.

A linear router without bias cannot be made quiet by a number: x r must be low for every x that
the router reads. It can for real text, because what a router reads behind the first layers lies
in a half-space. The row is found on text, as the r of a least-squares hinge on

    x r <= min(k-th largest old logit, largest old logit - QUIET) - MARGIN      for each token x.

Behind `QUIET` nats the new expert's probability is below half a unit in the last place of the
softmax's sum, so in float32 the old experts' weights do not change by a bit, whether they are
renormalised (mixtral, qwen3_moe) or not (olmoe, flex_olmo, qwen2_moe). It is not zero, so that
training can still reach the expert: a load-balancing loss on the branch's own data has a gradient
on the row, and once tokens arrive the expert's zero down-projection gets one. The gradient is
about 1e-11, so Adam's epsilon has to be smaller (1e-15; with the usual 1e-8 the row stays where
it is). Shorter is the way with text of the domain: its tokens are asked to have

    x r >= k-th largest old logit + MARGIN,

and so reach the new expert from the first step; they lose their last old expert to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from moegraft.families import Family
from moegraft.runtime.batches import batches
from moegraft.runtime.hooks import Routing, observed

QUIET = 18.0
"""Nats below the largest logit: exp(-18) < 2^-25, half the spacing of float32 numbers at 1."""
MARGIN = 1.0
"""Nats to spare, for tokens that were not among the text."""

_KEEP = 10.0
"""How much more a token that must stay counts than one that shall come."""
_STEPS = 200
_MOST_TOKENS = 8192
"""Tokens that a row is fitted to; it is judged on all."""


@dataclass(frozen=True, slots=True)
class Row:
    """The start of one layer's new router rows, and what it does to the text it was found on."""

    row: Float[Tensor, "hidden"]
    num_tokens: int
    num_displaced: int
    """Tokens of the text that the new expert takes from an old one."""
    num_loud: int
    """Tokens for which its probability changes a bit of the others'."""
    share_reached: float
    """Of the domain's tokens, those that are sent to the new expert; 0 without domain text."""
    favourites: tuple[int, ...]
    """Old experts by how many tokens they serve, of the domain's text if there is one."""


def neutral_rows(
    model: torch.nn.Module,
    family: Family,
    keep: Sequence[Sequence[int]],
    reach: Sequence[Sequence[int]] = (),
) -> Mapping[int, Row]:
    """Find a row for every router of a live model.

    Args:
        model: the MoE that experts are appended to, in float32.
        family: of the model.
        keep: token ids of texts for which nothing may change.
        reach: token ids of texts that the new experts shall serve.
    """
    kept, wanted = _read(model, family, keep), _read(model, family, reach) if reach else {}
    return {layer: _fit(kept[layer], wanted.get(layer)) for layer in kept}


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one router read and said."""

    hidden: Tensor
    logits: Tensor
    top_k: int

    @property
    def last(self) -> Tensor:
        """The smallest logit that is chosen."""
        return self.logits.topk(self.top_k).values[:, -1]

    @property
    def quiet(self) -> Tensor:
        """Above this a new logit would show."""
        return torch.minimum(self.last, self.logits.amax(1) - QUIET)

    def favourites(self) -> tuple[int, ...]:
        chosen = self.logits.topk(self.top_k).indices.reshape(-1)
        counts = torch.bincount(chosen, minlength=self.logits.shape[1])
        return tuple(counts.argsort(descending=True, stable=True).tolist())


@torch.no_grad()
def _read(model: torch.nn.Module, family: Family, ids: Sequence[Sequence[int]]) -> dict[int, _Seen]:
    parts: dict[int, list[Routing]] = {}
    device = next(model.parameters()).device
    for batch in batches(ids, 4096, device):
        with observed(model, family, lambda r: parts.setdefault(r.layer, []).append(r), batch.mask):
            model(batch.ids, attention_mask=batch.mask.long())
    return {
        layer: _Seen(
            torch.cat([part.hidden for part in found]).double().cpu(),
            torch.cat([part.logits for part in found]).double().cpu(),
            found[0].experts.shape[1],
        )
        for layer, found in parts.items()
    }


def _fit(kept: _Seen, wanted: _Seen | None) -> Row:
    """The strict start if the text admits it, else the one that displaces the fewest tokens."""
    if wanted is not None:
        return _solve(kept, kept.last - MARGIN, wanted)
    strict = _solve(kept, kept.quiet - MARGIN, None)
    if not strict.num_displaced:
        return strict
    loose = _solve(kept, kept.last - MARGIN, None)
    return loose if loose.num_displaced < strict.num_displaced else strict


def _solve(kept: _Seen, bound: Tensor, wanted: _Seen | None) -> Row:
    hidden, bound = _thinned(kept.hidden), _thinned(bound)
    row = (-kept.hidden.mean(0) / kept.hidden.square().mean()).requires_grad_(True)
    optimizer = torch.optim.LBFGS([row], lr=1, max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = (hidden @ row - bound).clamp_min(0).square().mean()
        if wanted is not None:
            missing = (wanted.last + MARGIN - wanted.hidden @ row).clamp_min(0)
            total = _KEEP * total + missing.square().mean()
        total.backward()
        return total

    optimizer.step(loss)  # pyright: ignore[reportArgumentType]
    found = row.detach()
    said = kept.hidden @ found
    reached = (
        0.0 if wanted is None else float((wanted.hidden @ found > wanted.last).double().mean())
    )
    return Row(
        row=found.float(),
        num_tokens=len(said),
        num_displaced=int((said >= kept.last).sum()),
        num_loud=int((said >= kept.logits.amax(1) - QUIET).sum()),
        share_reached=reached,
        favourites=(wanted or kept).favourites(),
    )


def _thinned(tokens: Tensor) -> Tensor:
    """At most `_MOST_TOKENS` of the tokens, evenly spaced."""
    return tokens[:: -(-len(tokens) // _MOST_TOKENS)]
