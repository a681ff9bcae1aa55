"""The two post-trainings of the nano pair: what each imitates, prefers and is rewarded for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any

from moegraft.nano import worlds
from moegraft.train.data import Exchange, Record, demonstration, preference, task
from moegraft.train.options import TrainOptions

VERIFIER_OF = {"math": "last_number", "reading": "yes_no", "science": "letter"}
CONVERSATION = "conversation"
"""The kind of record that asks its science question after earlier exchanges."""
EASY_MATH = "easy_math"
"""The kind of record that asks a word problem of one or two steps."""


@dataclass(frozen=True, slots=True)
class PostTraining:
    """One post-training from the base model; mixtures are shares of worlds."""

    name: str
    summary: str
    sft_mix: Mapping[str, float]
    sft: TrainOptions
    dpo_mix: Mapping[str, float]
    dpo: TrainOptions
    rl_mix: Mapping[str, float] = field(default_factory=dict)
    rl: TrainOptions | None = None
    seed: int = 0


SFT_DPO = PostTraining(
    name="sft-dpo",
    summary="a general assistant: reading, science and conversations, a little easy arithmetic",
    sft_mix={"science": 0.33, CONVERSATION: 0.12, "reading": 0.40, EASY_MATH: 0.15},
    sft=TrainOptions(num_steps=240, batch=32, learning_rate=5e-4, seed=1, use_cpu=True),
    dpo_mix={"science": 0.45, "reading": 0.45, EASY_MATH: 0.1},
    dpo=TrainOptions(num_steps=40, batch=16, learning_rate=5e-5, seed=2, use_cpu=True),
    seed=1,
)
RLVR = PostTraining(
    name="rlvr",
    summary="a problem solver: written-out steps, then rewards for verified answers",
    sft_mix={"math": 0.56, "science": 0.10, CONVERSATION: 0.16, "reading": 0.18},
    sft=TrainOptions(num_steps=240, batch=32, learning_rate=5e-4, seed=3, use_cpu=True),
    dpo_mix={"math": 0.7, "science": 0.15, "reading": 0.15},
    dpo=TrainOptions(num_steps=40, batch=16, learning_rate=5e-5, seed=4, use_cpu=True),
    rl_mix={"math": 0.8, "science": 0.1, "reading": 0.1},
    rl=TrainOptions(num_steps=50, batch=64, learning_rate=1e-4, seed=5, use_cpu=True),
    seed=2,
)
RECIPES = {recipe.name: recipe for recipe in (SFT_DPO, RLVR)}


def _draws(
    mix: Mapping[str, float], rng: Random
) -> Iterator[tuple[str, dict[str, Any], list[Exchange]]]:
    """Worlds in the shares of `mix`, each with a training item and any earlier exchanges."""
    while True:
        kind = rng.choices(list(mix), weights=list(mix.values()))[0]
        before = worlds.exchanges(rng) if kind == CONVERSATION else []
        world = {CONVERSATION: "science", EASY_MATH: "math"}.get(kind, kind)
        item = worlds.practice_item(world, rng)
        while kind == EASY_MATH and item["steps"].count("=") > 2:
            item = worlds.practice_item(world, rng)
        yield world, item, before


def demonstrations(recipe: PostTraining) -> list[Record]:
    """All records of the supervised stage."""
    rng = Random(f"{recipe.name} {recipe.seed} sft")
    records = []
    for world, item, before in islice(
        _draws(recipe.sft_mix, rng), recipe.sft.num_steps * recipe.sft.batch
    ):
        module = worlds.WORLDS[world]
        records.append(demonstration(module.prompt(item), module.response(item), before))
    return records


def preferences(recipe: PostTraining) -> list[Record]:
    """All comparisons of the preference stage: the right response against a careless one."""
    rng = Random(f"{recipe.name} {recipe.seed} dpo")
    records = []
    for world, item, before in islice(
        _draws(recipe.dpo_mix, rng), recipe.dpo.num_steps * recipe.dpo.batch
    ):
        module = worlds.WORLDS[world]
        wrong = module.mistake(item, rng)
        records.append(preference(module.prompt(item), module.response(item), wrong, before))
    return records


def tasks(recipe: PostTraining, num_generations: int) -> list[Record]:
    """All prompts of the reinforcement stage, one for each group of completions."""
    assert recipe.rl is not None
    rng = Random(f"{recipe.name} {recipe.seed} rl")
    number = recipe.rl.num_steps * recipe.rl.batch // num_generations
    return [
        task(worlds.WORLDS[world].prompt(item), VERIFIER_OF[world], worlds.gold(world, item))
        for world, item, _ in islice(_draws(recipe.rl_mix, rng), number)
    ]
