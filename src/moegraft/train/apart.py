"""Documents that share a block never see one another, whatever mixes tokens in the model.

Where position ids that start again are enough for a model to tell documents apart, blocks are run
as they are. Elsewhere (state-space and linear-attention layers, and attention that is not told)
each document is run as a sequence of its own, beside others of similar length.
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from moegraft.errors import FamilyError
from moegraft.families import Family, find_family

_log = logging.getLogger(__name__)


@torch.no_grad()
def keeps_apart(model: PreTrainedModel) -> bool:
    """Whether position ids that start again make `model` treat documents of a block separately.

    A model of the catalogue with layers other than attention does not. Others are tried out on
    eight tokens, because some implementations (gpt_oss in transformers 5.23) do not tell their
    attention.
    """
    apart = _can_tell(model) and _tells(model)
    if not apart:
        _log.warning(
            "%s cannot keep the documents of a block apart, so each is run by itself: slower",
            type(model).__name__,
        )
    return apart


def packed_logits(
    model: Any,
    ids: Int[Tensor, "row token"],
    positions: Int[Tensor, "row token"],
    *,
    apart: bool,
    counted: Bool[Tensor, "row token"] | None = None,
    after: Callable[[Bool[Tensor, "document place"]], None] | None = None,
) -> Float[Tensor, "row token vocab"]:
    """The model's logits at every place of packed blocks, as if each document stood alone.

    Args:
        model: any causal model.
        ids: blocks of documents.
        positions: counted from the start of each document.
        apart: from `keeps_apart`.
        counted: places whose logits matter; documents without one are not run, and what stands
            there means nothing. All places when None. Without effect where `apart`.
        after: called after each forward pass of single documents with what is no padding.
    """
    if apart:
        return model(input_ids=ids, position_ids=positions, use_cache=False).logits
    found = []
    place = torch.zeros_like(ids, dtype=torch.long)
    done = 0
    for rows, first, length in _groups(positions, counted):
        width = int(length.max())
        steps = torch.arange(width, device=ids.device)
        real = steps < length[:, None]
        columns = (first[:, None] + steps).clamp_max(ids.shape[1] - 1)
        own = model(input_ids=ids[rows[:, None], columns], use_cache=False).logits
        if after is not None:
            after(real)
        found.append(own[real])
        at = done + real.flatten().cumsum(0).view_as(real) - 1
        place[rows[:, None].expand_as(real)[real], columns[real]] = at[real]
        done += int(real.sum())
    return torch.cat(found)[place]


def _groups(positions: Tensor, counted: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Row, first token and length of documents, none under half as long as another beside it."""
    starts = positions == 0
    starts[:, 0] = True
    rows, first = starts.nonzero(as_tuple=True)
    flat = rows * positions.shape[1] + first
    end = torch.cat([flat[1:], flat.new_tensor([positions.numel()])])
    length = end - flat
    if counted is not None:
        before = torch.cat([flat.new_zeros(1), counted.reshape(-1).cumsum(0)])
        wanted = before[end] > before[flat]
        wanted[0] |= ~wanted.any()
        rows, first, length = rows[wanted], first[wanted], length[wanted]
    order = length.argsort(descending=True, stable=True)
    rows, first, length = rows[order], first[order], length[order]
    while len(rows):
        count = int((2 * length > length[0]).sum())
        yield rows[:count], first[:count], length[:count]
        rows, first, length = rows[count:], first[count:], length[count:]


def _can_tell(model: PreTrainedModel) -> bool:
    """Whether the model takes position ids, and has nothing but attention to mix tokens."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    try:
        family = find_family(model.config.to_dict())
    except FamilyError:
        return True
    return not any(_is_mixer(family, name) for name, _ in model.named_parameters())


def _is_mixer(family: Family, name: str) -> bool:
    try:
        return family.place(name).component == "mixer"
    except FamilyError:  # something that was added for training, such as low-rank factors
        return False


def _tells(model: PreTrainedModel) -> bool:
    was_training = model.training
    model.eval()
    embedding: Any = model.get_input_embeddings()
    device = embedding.weight.device
    ids = torch.arange(1, 9, device=device).repeat(2, 1)
    ids[1, :4] += 8  # two blocks whose first documents differ
    ids %= embedding.weight.shape[0]
    going_on = torch.arange(8, device=device).expand(2, 8)
    differences = []
    for positions in (going_on, going_on % 4):
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 4:].float()
        differences.append(float((logits[0] - logits[1]).abs().max()))
    model.train(was_training)
    return differences[1] <= 0.05 * differences[0]
