"""Which parts of a model moved: shared by the loops that train frozen models."""

from typing import Any

import torch

from moegraft.train.freeze import Trainable
from tiny_families import build_tiny

FAMILIES: dict[str, dict[str, int]] = {
    "flex_olmo": {"num_experts": 2},
    "mixtral": {"num_local_experts": 2},
    "olmoe": {},
}
EXPERT = 1
TOKENS = (3, 4, 9, 40)
CHOSEN = Trainable(
    whole=("model.norm.weight", "model.layers.1.self_attn.q_proj.weight"),
    rows={
        "model.layers.*.mlp.experts.*": (EXPERT,),
        "model.layers.*.mlp.gate.weight": (EXPERT,),
        "model.embed_tokens.weight": TOKENS,
        "lm_head.weight": TOKENS,
    },
)


def small(family: str, **sizes: int) -> Any:
    """A tiny model of two or more experts, two of them active."""
    model = build_tiny(family, **{"num_experts_per_tok": 2, **FAMILIES[family], **sizes})
    model.set_experts_implementation("eager")
    return model.train()


def ids(step: int, rows: int = 4) -> torch.Tensor:
    """A batch that shows the chosen tokens often."""
    source = torch.Generator().manual_seed(step)
    batch = torch.randint(0, 64, (rows, 24), generator=source)
    batch[:, ::3] = torch.tensor(TOKENS * 2)
    return batch


def state(model: Any) -> dict[str, torch.Tensor]:
    """A copy of everything, gathered where it is sharded."""
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()
        for name, value in model.state_dict().items()
    }


def assert_only_chosen_moved(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], opened: Any
) -> None:
    """Every open row has moved, and every other bit is where it was."""
    assert before.keys() == after.keys()
    for name, old in before.items():
        new = after[name]
        rows = opened.get(name, ())
        rows = range(len(old)) if rows is None else rows
        if opened.get(name, ()) is None:
            assert not torch.equal(old, new), f"{name} did not move"
            continue
        for row in rows:
            assert not torch.equal(old[row], new[row]), f"{name}[{row}] did not move"
        closed = [row for row in range(len(old)) if row not in rows]
        same = old[closed].view(torch.int32), new[closed].view(torch.int32)
        assert torch.equal(*same), f"{name} moved outside of {rows}"
