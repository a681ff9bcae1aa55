"""The stages of BAR's experiment: how long each is, what it trains, how a model is scored."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bar_scores import ANSWER_TOKENS, Lab, load, stage
from moegraft.bar.adapt import adapt
from moegraft.bar.branch import BranchRecipe, plan_branch, write_branch
from moegraft.bar.merge import MergeRecipe, plan_merge, write_merge
from moegraft.bar.opened import Level
from moegraft.bar.route import RouteRecipe, train_routers
from moegraft.bar.stages import AdaptRecipe, StageRecipe
from moegraft.bar.tune import Tuning
from moegraft.nano import domains, tool_world
from moegraft.train import TrainOptions
from moegraft.train.chats import pack_chats, read_chats
from moegraft.train.lm import train_lm
from moegraft.train.text import Blocks, pack, read_documents

LENGTH, BATCH = 128, 4
"""Tokens of a block, blocks a step."""
MID_STEPS = {"math": 800, "code": 400}
"""Domains that are mid-trained before the supervised stage, as in the paper."""
SFT_STEPS = {"math": 300, "code": 300, "tool": 600, "safety": 300}
"""With as much of the general mix as of the domain."""
MID_RATE, SFT_RATE, ROUTER_RATE = 3e-3, 1e-3, 3e-3
TOKEN_NOISE = 1.0
"""Of the new tokens' rows, in deviations of each column: rows that nothing has trained yet."""
ROUTER_SHARE, ROUTER_EPOCHS = 0.05, 2
"""Of the chats of every domain, and passes over them, as in the paper."""
RL_STEPS, RL_BATCH, RL_WARMUP = 150, 256, 0.05
"""Reinforcement learning on code: an ablation, not part of the main table. One step a round of
sampling, where the paper takes four."""
BRANCHES = ("math", "code", "tool", "safety")
NEW_TOKENS = tool_world.SPECIAL_TOKENS
_BLOCKS: dict[str, Any] = {"length": LENGTH, "batch": BATCH, "scheduler": "linear"}


def worlds(lab: Lab) -> Path:
    """The data of this seed."""

    def make(folder: Path) -> None:
        domains.write(folder, num_texts=4000, num_chats=3000, seed=lab.seed)

    return stage(lab.at("worlds"), make)


def dense_mid(lab: Lab, start: Path, out: Path, names: Sequence[str], steps: int) -> Path:
    """Mid-train a dense model on the text of some domains."""

    def data(tokenizer: Any) -> dict[str, Blocks]:
        return {
            name: pack(read_documents(worlds(lab) / name / "text.jsonl"), tokenizer, LENGTH)
            for name in names
        }

    return _train(lab, start, out, data, _Way(steps, MID_RATE))


def dense_sft(
    lab: Lab,
    start: Path,
    out: Path,
    shares: Mapping[str, float],
    *,
    steps: int,
    new_tokens: Sequence[str] = (),
) -> Path:
    """Train a dense model on chats, in these shares of the tokens; it first gets `new_tokens`."""

    def data(tokenizer: Any) -> dict[str, Blocks]:
        return {
            name: pack_chats(read_chats(worlds(lab) / name / "chat.jsonl"), tokenizer, LENGTH)
            for name in shares
        }

    return _train(lab, start, out, data, _Way(steps, SFT_RATE, shares, tuple(new_tokens)))


def dense_sft_of(lab: Lab, start: Path, out: Path, domain: str) -> Path:
    """Train a dense model on one domain's chats and as much of the general mix."""
    shares = {domain: 0.5, "general": 0.5}
    tokens = NEW_TOKENS if domain == "tool" else ()
    return dense_sft(lab, start, out, shares, steps=SFT_STEPS[domain], new_tokens=tokens)


def widened(lab: Lab, start: Path, name: str) -> Path:
    """A dense model with rows for the new tokens, untrained: dense models merge at one size."""

    def make(folder: Path) -> None:
        model, tokenizer = load(start)
        _add_tokens(model, tokenizer, NEW_TOKENS)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return stage(lab.at(name), make)


def branch(
    lab: Lab, anchor: Path, pretrained: Path, domain: str, *, token_noise: float = TOKEN_NOISE
) -> Path:
    """The untrained branch of a domain, its expert started from the pretrained FFN."""

    def make(folder: Path) -> None:
        tokens = NEW_TOKENS if domain == "tool" else ()
        write_branch(
            plan_branch(
                BranchRecipe(
                    anchor=str(anchor),
                    domain=domain,
                    pretrained=str(pretrained),
                    seed=lab.seed,
                    new_tokens=tokens,
                    token_noise=token_noise,
                )
            ),
            folder,
        )

    equal = "" if token_noise else "-equal"
    return stage(lab.at(f"branch-{domain}-start{equal}"), make)


def mid_stage(lab: Lab, domain: str) -> StageRecipe:
    """Mid-training of a branch on its domain's text."""
    text = str(worlds(lab) / domain / "text.jsonl")
    return StageRecipe("mid", (text,), steps=MID_STEPS[domain], learning_rate=MID_RATE, **_BLOCKS)


def sft_stage(
    lab: Lab, domain: str, *, with_general: bool = True, opened: Any = None
) -> StageRecipe:
    """Supervised finetuning of a branch, half of it on the general mix."""
    chats, general = (str(worlds(lab) / name / "chat.jsonl") for name in (domain, "general"))
    return StageRecipe(
        "sft",
        (chats,),
        general=(general,) if with_general else (),
        general_share=0.5 if with_general else None,
        open=opened,
        steps=SFT_STEPS[domain] if with_general else SFT_STEPS[domain] // 2,
        learning_rate=SFT_RATE,
        **_BLOCKS,
    )


def rl_stage(lab: Lab, *, opened: Level, rate: float) -> StageRecipe:
    """Reinforcement learning on programs that pass their tests."""
    return StageRecipe(
        "rl",
        (str(worlds(lab) / "code" / "tasks.jsonl"),),
        open=opened,
        steps=RL_STEPS,
        batch=RL_BATCH,
        mini_batches=1,
        learning_rate=rate,
        warmup_share=RL_WARMUP,
        length=ANSWER_TOKENS["code"],
    )


def adapted(lab: Lab, start: Path, out: Path, *stages: StageRecipe) -> Path:
    """A branch after `stages`."""

    def make(folder: Path) -> None:
        adapt(AdaptRecipe(str(start), stages, seed=lab.seed, device="cpu"), folder)

    return stage(out, make, keep=True) / "branch"


def merged(
    lab: Lab,
    anchor: Path,
    parts: Sequence[Path],
    out: Path,
    method: Any,
    *,
    shared: str = "mean",
) -> Path:
    """Merge branches (method `bar`) or dense models with the anchor."""

    def make(folder: Path) -> None:
        sources = tuple(map(str, parts))
        recipe = MergeRecipe(
            anchor=str(anchor), branches=sources, method=method, shared=shared, seed=lab.seed
        )
        write_merge(plan_merge(recipe), folder)

    return stage(out, make)


def route(
    lab: Lab,
    start: Path,
    out: Path,
    *,
    share: float = ROUTER_SHARE,
    top_k: int | None = None,
    names: Sequence[str] = tuple(domains.DOMAINS),
) -> Path:
    """Train the routers alone on `share` of every domain's chats, the same share of each."""

    def make(folder: Path) -> None:
        recipe = RouteRecipe(
            model=str(start),
            data={name: str(worlds(lab) / name / "chat.jsonl") for name in names},
            share=share,
            held_out=0.005,
            top_k=() if top_k is None else (top_k,),
            length=LENGTH,
            tuning=Tuning(
                epochs=ROUTER_EPOCHS, learning_rate=ROUTER_RATE, batch=BATCH, seed=lab.seed
            ),
        )
        train_routers(recipe, folder)

    stage(out, make)
    return out if top_k is None else out / f"k-{top_k}"


@dataclass(frozen=True, slots=True)
class _Way:
    """How one stage of a dense model trains."""

    steps: int
    rate: float
    shares: Mapping[str, float] | None = None
    """Of the sources; None = by size."""
    new_tokens: tuple[str, ...] = ()
    """That the model gets first, if it lacks them."""


def _train(
    lab: Lab, start: Path, out: Path, data: Callable[[Any], dict[str, Blocks]], way: _Way
) -> Path:
    """Train a dense model as a whole."""

    def make(folder: Path) -> None:
        model, tokenizer = load(start)
        missing = [token for token in way.new_tokens if token not in tokenizer.get_vocab()]
        if missing:
            _add_tokens(model, tokenizer, missing)
        place = folder.with_name(f"{folder.name}.train")
        options = _options(lab, way.steps, way.rate)
        train_lm(model, data(tokenizer), options, work=place, weights=way.shares)
        _save(model, tokenizer, folder, place)

    return stage(out, make)


def _options(lab: Lab, steps: int, rate: float) -> TrainOptions:
    return TrainOptions(
        num_steps=steps,
        batch=BATCH,
        learning_rate=rate,
        betas=(0.9, 0.95),
        warmup_steps=max(1, steps // 20),
        seed=lab.seed,
        use_cpu=True,
    )


def _add_tokens(model: Any, tokenizer: Any, tokens: Sequence[str]) -> None:
    """New rows around the mean row, as in a branch; the same ones in every model."""
    tokenizer.add_tokens(list(tokens))
    rows = {}
    for name in ("get_input_embeddings", "get_output_embeddings"):
        old = getattr(model, name)().weight.detach()
        noise = torch.randn(len(tokens), old.shape[1], generator=torch.Generator().manual_seed(0))
        rows[name] = old.mean(0) + TOKEN_NOISE * old.std(0) * noise
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for name, new in rows.items():
        getattr(model, name)().weight.data[-len(tokens) :] = new


def _save(model: Any, tokenizer: Any, out: Path, place: Path) -> None:
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    shutil.rmtree(place, ignore_errors=True)
