"""Small Mixture-of-Experts pairs whose donor got a skill, or lost one, in a known place.

A host learns tables of facts (two key tokens, one value) and to turn sequences round. A donor is
the host after some of its units were trained further, or overwritten; all others are bit-identical
or were trained on something that is not asked about. Everything follows from a seed.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import OlmoeConfig, OlmoeForCausalLM

from moegraft.evals.condition import Item, Pair, content_hash

LAYERS, EXPERTS, SYMBOLS, FACTS = 4, 8, 32, 256
ASKED, OLD, OTHER, TURN, GO = range(SYMBOLS, SYMBOLS + 5)
"""Tokens that open a line: the asked, the old and the unrelated table of facts; turning round."""

Places = dict[int, tuple[int, ...]]
"""Expert indices by layer."""

KINDS = {
    "skill in all experts": "experts",
    "skill in 4 experts, 28 others trained on something else": "experts",
    "skill in attention, experts trained on something else": "components",
    "skill anywhere": "components",
    "4 experts damaged, 28 others trained on something else": "experts",
    "skill in 4 experts, 4 others damaged": "experts",
    "skill in all experts, old facts forgotten": "experts",
}
"""What is planted, and the units to rank."""


def facts(table: int, seed: int) -> Tensor:
    """Lines `table a b value`, one per fact; [FACTS, 4]."""
    source = torch.Generator().manual_seed(1000 * seed + table)
    keys = torch.randperm(SYMBOLS * SYMBOLS, generator=source)[:FACTS]
    values = torch.randint(SYMBOLS, (FACTS,), generator=source)
    return torch.stack([torch.full_like(keys, table), keys // SYMBOLS, keys % SYMBOLS, values], 1)


def turns(count: int, source: torch.Generator) -> Tensor:
    """Lines `TURN x1 x2 x3 x4 GO x4 x3 x2 x1`; [count, 10]."""
    x = torch.randint(SYMBOLS, (count, 4), generator=source)
    ends = (torch.full((count, 1), token) for token in (TURN, GO))
    first, middle = ends
    return torch.cat([first, x, middle, x.flip(1)], 1)


def items_of(lines: Tensor, num_prompt: int) -> tuple[Item, ...]:
    """Each line as an item: the first tokens are the prompt, the rest is the gold answer."""
    made = []
    for line in lines.tolist():
        prompt, answer = tuple(line[:num_prompt]), tuple(line[num_prompt:])
        digest = content_hash(line)
        pair = Pair(prompt, answer)
        made.append(Item(digest, {}, "", prompt, digest, str(answer), gold_pair=pair))
    return tuple(made)


def new_model(seed: int) -> OlmoeForCausalLM:
    torch.manual_seed(seed)
    config = OlmoeConfig(
        vocab_size=SYMBOLS + 8,
        hidden_size=48,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        pad_token_id=SYMBOLS + 7,
        eos_token_id=SYMBOLS + 6,
        initializer_range=0.05,
    )
    model = OlmoeForCausalLM(config)
    model.set_experts_implementation("eager")
    return model


Batches = Iterator[list[tuple[Tensor, int]]]
"""Lines, and how many of their tokens are the prompt."""


def mixture(tables: Sequence[Tensor], seed: int, *, turning: bool, size: int = 64) -> Batches:
    """Endless batches: lines of each table, and of turning round."""
    source = torch.Generator().manual_seed(seed)
    while True:
        lines = [table[torch.randint(len(table), (size,), generator=source)] for table in tables]
        batch = [(torch.cat(lines), 3)]
        yield [*batch, (turns(size // 4, source), 6)] if turning else batch


def train(
    model: OlmoeForCausalLM,
    batches: Batches,
    steps: int,
    learning_rate: float,
    *,
    only: Callable[[str], bool] = lambda name: True,
    places: Places | None = None,
) -> None:
    """Train the parameters that `only` admits; with `places`, only these experts of them.

    The mean of all losses, plus the usual load-balancing loss over routers that are trained.
    """
    chosen = {n: p for n, p in model.named_parameters() if only(n)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    before = {name: p.detach().clone() for name, p in chosen.items()} if places else {}
    optimizer = torch.optim.AdamW(chosen.values(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    balance = any("mlp.gate." in name for name in chosen)
    model.train()
    for _, batch in zip(range(steps), batches, strict=False):
        loss = torch.zeros(())
        for lines, num_prompt in batch:
            labels = lines.clone()
            labels[:, :num_prompt] = -100
            out = model(input_ids=lines, labels=labels, output_router_logits=balance)
            loss = loss + out.loss / len(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(chosen.values(), 1.0)
        optimizer.step()
        schedule.step()
        for name, old in before.items():  # other experts of a fused tensor stay as they were
            with torch.no_grad():
                layer = int(name.split(".")[2])
                rest = [e for e in range(EXPERTS) if e not in (places or {}).get(layer, ())]
                chosen[name][rest] = old[rest]
    model.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(model: OlmoeForCausalLM, lines: Tensor, num_prompt: int) -> float:
    logits = model(input_ids=lines).logits[:, num_prompt - 1 : -1]
    return float((logits.argmax(-1) == lines[:, num_prompt:]).all(1).float().mean())


def is_experts(name: str) -> bool:
    return ".mlp.experts." in name


def is_attention(name: str) -> bool:
    return ".self_attn." in name


@dataclass(frozen=True)
class Planted:
    """Two models and what tells them apart."""

    host: OlmoeForCausalLM
    donor: OlmoeForCausalLM
    asked: int
    """The table of facts that the donor knows better."""
    places: tuple[tuple[int, int], ...] = ()
    """(layer, expert) where it was planted; empty where that is everywhere or not in experts."""
    harmed: int | None = None
    """The table of facts that the host knows better, where there is one."""


def base_model(seed: int) -> OlmoeForCausalLM:
    """A model that knows the old facts and turns sequences round."""
    model = new_model(seed)
    train(model, mixture([facts(OLD, seed)], seed, turning=True), 400, 5e-3)
    return model


def plant(kind: str, base: OlmoeForCausalLM, seed: int) -> Planted:
    """Make the pair of one kind from the base model."""
    old, asked, other = (facts(table, seed) for table in (OLD, ASKED, OTHER))
    first, second = _two_sets(seed)
    rest = {layer: tuple(set(range(EXPERTS)) - set(first[layer])) for layer in range(LAYERS)}

    def trained(
        model: OlmoeForCausalLM, tables: Sequence[Tensor], steps: int = 150, **how: Any
    ) -> OlmoeForCausalLM:
        model = deepcopy(model)
        turning = old is tables[-1]
        train(model, mixture(tables, seed + 7, turning=turning), steps, 8e-3, **how)
        return model

    def drifted(places: Places | None = None) -> OlmoeForCausalLM:
        return trained(base, [other, old], 100, only=is_experts, places=places)

    def damaged() -> Planted:
        return Planted(_overwritten(drifted(rest), first, seed), base, OLD, _listed(first))

    def mixed() -> Planted:
        donor = trained(base, [asked, old], only=is_experts, places=first)
        return Planted(base, _overwritten(donor, second, seed), ASKED, _listed(first), harmed=OLD)

    def gained(donor: OlmoeForCausalLM, **more: Any) -> Planted:
        return Planted(base, donor, ASKED, **more)

    makers = (
        lambda: gained(trained(base, [asked, old], only=is_experts)),
        lambda: gained(
            trained(drifted(rest), [asked, other, old], only=is_experts, places=first),
            places=_listed(first),
        ),
        lambda: gained(trained(drifted(), [asked, other, old], only=is_attention)),
        lambda: gained(trained(base, [asked, old])),
        damaged,
        mixed,
        lambda: gained(trained(base, [asked], only=is_experts), harmed=OLD),
    )
    return makers[list(KINDS).index(kind)]()


def _two_sets(seed: int) -> tuple[Places, Places]:
    """Two disjoint choices of one expert per layer."""
    source = Random(seed)
    pairs = [source.sample(range(EXPERTS), 2) for _ in range(LAYERS)]
    return tuple({layer: (pair[i],) for layer, pair in enumerate(pairs)} for i in (0, 1))


def _listed(places: Places) -> tuple[tuple[int, int], ...]:
    return tuple((layer, e) for layer, experts in places.items() for e in experts)


def _overwritten(model: OlmoeForCausalLM, places: Places, seed: int) -> OlmoeForCausalLM:
    """Some experts' weights replaced by noise of the same spread."""
    model = deepcopy(model)
    source = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if is_experts(name):
            for expert in places[int(name.split(".")[2])]:
                noise = torch.randn(parameter[expert].shape, generator=source)
                parameter.data[expert] = noise * parameter[expert].std()
    return model
