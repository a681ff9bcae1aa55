"""The stages of BAR's experiment: how long each is, what it trains, how a model is scored."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moegraft.bar.branch import BranchRecipe, plan_branch, write_branch
from moegraft.bar.merge import MergeRecipe, plan_merge, write_merge
from moegraft.nano import domains, tool_world
from moegraft.train import TrainOptions
from moegraft.train.chats import pack_chats, read_chats
from moegraft.train.freeze import Trainable, freeze
from moegraft.train.lm import train_lm
from moegraft.train.router_loss import RouterLoss
from moegraft.train.text import Blocks, pack, read_documents

LENGTH, BATCH = 128, 4
"""Tokens of a block, blocks a step."""
BASE_STEPS = 1600
ANCHOR_STEPS = 400
MID_STEPS = {"math": 500, "code": 300}
"""Domains that are mid-trained before the supervised stage, as in the paper."""
SFT_STEPS = 500
"""Of one domain, with as much of the general mix."""
MID_RATE, SFT_RATE, ROUTER_RATE = 3e-3, 2e-3, 3e-3
ROUTER_SHARE = 0.25
"""Of the chats of every domain; the paper's 5 % would be 3 steps here."""
ROUTER_EPOCHS = 2
BRANCHES = ("math", "code", "tool", "safety")
NEW_TOKENS = tool_world.SPECIAL_TOKENS
NUM_ITEMS = 200
ANSWER_TOKENS = {"reading": 16, "science": 14, "math": 44, "code": 20, "tool": 44, "safety": 16}
"""Kinds of question that are scored, and how long an answer may get."""

_EXPERT = {"*.mlp.experts.*": (1,), "*.mlp.gate.weight": (1,)}
MID_OPEN = Trainable(rows=_EXPERT)
"""The domain expert and its router row."""
SFT_OPEN = Trainable(whole=("model.embed_tokens.weight", "lm_head.weight"), rows=_EXPERT)
"""Embeddings and head too."""


@dataclass(frozen=True, slots=True)
class Lab:
    """Where the experiment lives, and which of its seeds this is."""

    work: Path
    seed: int

    def at(self, name: str) -> Path:
        """The folder of a stage of this seed."""
        return self.work / f"seed{self.seed}" / name


def stage(folder: Path, make: Callable[[Path], None], *, keep: bool = False) -> Path:
    """Fill `folder` unless it is finished; what an interruption left is removed, or kept."""
    if not (folder / "DONE").exists():
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        begin = time.process_time()
        make(folder)
        folder.mkdir(exist_ok=True)
        seconds = time.process_time() - begin
        (folder / "DONE").write_text(f"{seconds:.0f}\n")
        print(f"{folder}: {seconds:.0f} s of one core", flush=True)
    return folder


def worlds(lab: Lab) -> Path:
    """The data of this seed."""

    def make(folder: Path) -> None:
        domains.write(folder, num_texts=4000, num_chats=2000, seed=lab.seed)

    return stage(lab.at("worlds"), make)


def mid(lab: Lab, start: Path, out: Path, names: Sequence[str], steps: int) -> Path:
    """Mid-train on the text of some domains."""

    def data(tokenizer: Any) -> dict[str, Blocks]:
        return {
            name: pack(read_documents(worlds(lab) / name / "text.jsonl"), tokenizer, LENGTH)
            for name in names
        }

    return _train(lab, start, out, data, _Way(steps, MID_RATE, MID_OPEN))


def sft(
    lab: Lab,
    start: Path,
    out: Path,
    shares: Mapping[str, float],
    *,
    steps: int,
    new_tokens: Sequence[str] = (),
    trainable: Trainable = SFT_OPEN,
) -> Path:
    """Train on chats, in these shares of the tokens; a dense model first gets `new_tokens`."""

    def data(tokenizer: Any) -> dict[str, Blocks]:
        return {
            name: pack_chats(read_chats(worlds(lab) / name / "chat.jsonl"), tokenizer, LENGTH)
            for name in shares
        }

    way = _Way(steps, SFT_RATE, trainable, shares, tuple(new_tokens))
    return _train(lab, start, out, data, way)


def branch(
    lab: Lab, anchor: Path, pretrained: Path, domain: str, *, token_noise: float = 0.0
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

    noisy = "-noisy" if token_noise else ""
    return stage(lab.at(f"branch-{domain}-start{noisy}"), make)


def merged(lab: Lab, anchor: Path, parts: Sequence[Path], out: Path, method: Any) -> Path:
    """Merge branches (method `bar`) or dense models with the anchor."""

    def make(folder: Path) -> None:
        sources = tuple(map(str, parts))
        recipe = MergeRecipe(anchor=str(anchor), branches=sources, method=method, seed=lab.seed)
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
        model, tokenizer = load(start)
        if top_k is not None:
            _set_top_k(model, top_k)
        blocks = {}
        for name in names:
            chats = [*read_chats(worlds(lab) / name / "chat.jsonl")]
            chats = chats[: max(1, round(share * len(chats)))]
            blocks[name] = pack_chats(chats, tokenizer, LENGTH)
        steps = max(1, ROUTER_EPOCHS * sum(map(len, blocks.values())) // BATCH)
        frozen = freeze(model, Trainable(whole=("*.mlp.gate.weight",)))
        options = _options(lab, steps, ROUTER_RATE)
        place = folder.with_name(f"{folder.name}.train")
        train_lm(model, blocks, options, work=place, router=RouterLoss(z=1e-3))
        frozen.check()
        _save(model, tokenizer, start, folder, place)

    return stage(out, make)


def load(folder: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if hasattr(model.config, "num_experts"):
        model.set_experts_implementation("eager")
    return model, AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def answers(model: Any, tokenizer: Any, kind: str, items: Sequence[Any]) -> list[str]:
    """Greedy answers, token marks included, the end of text not."""
    ask = domains.KINDS[kind].prompt
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": ask(item)}], add_generation_prompt=True, tokenize=False
        )
        for item in items
    ]
    order = sorted(range(len(chats)), key=lambda i: len(chats[i]))
    found = [""] * len(chats)
    for first in range(0, len(order), 50):
        rows = order[first : first + 50]
        batch = tokenizer(
            [chats[i] for i in rows],
            add_special_tokens=False,
            return_tensors="pt",
            return_token_type_ids=False,
            padding=True,
        )
        made = model.generate(
            **batch,
            max_new_tokens=ANSWER_TOKENS[kind],
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        texts = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :])
        for i, text in zip(rows, texts, strict=True):
            found[i] = text.split(tokenizer.eos_token)[0]
    return found


def score(lab: Lab, row: str, folder: Path) -> dict[str, list[int]]:
    """Right and wrong by kind of question and item, kept in scores/ROW.json."""
    path = lab.at("scores") / f"{row}.json"
    if path.exists():
        return json.loads(path.read_text())
    model, tokenizer = load(folder)
    model.eval()
    begin = time.process_time()
    found = {}
    for kind in ANSWER_TOKENS:
        items = domains.test_items(kind, NUM_ITEMS)
        texts = answers(model, tokenizer, kind, items)
        check = domains.KINDS[kind].check
        found[kind] = [int(check(item, text)) for item, text in zip(items, texts, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found) + "\n")
    said = ", ".join(f"{kind} {100 * sum(s) / len(s):.0f}" for kind, s in found.items())
    print(f"seed {lab.seed} {row}: {said} ({time.process_time() - begin:.0f} s)", flush=True)
    return found


@dataclass(frozen=True, slots=True)
class _Way:
    """How one stage trains."""

    steps: int
    rate: float
    trainable: Trainable
    """In a branch; a dense model trains as a whole."""
    shares: Mapping[str, float] | None = None
    """Of the sources; None = by size."""
    new_tokens: tuple[str, ...] = ()
    """That a dense model gets first, if it lacks them."""


def _train(
    lab: Lab, start: Path, out: Path, data: Callable[[Any], dict[str, Blocks]], way: _Way
) -> Path:
    """Train a dense model as a whole, or what is open in a branch."""

    def make(folder: Path) -> None:
        model, tokenizer = load(start)
        missing = [token for token in way.new_tokens if token not in tokenizer.get_vocab()]
        if missing:
            _add_tokens(model, tokenizer, missing)
        is_branch = model.config.model_type == "flex_olmo"
        frozen = freeze(model, way.trainable) if is_branch else None
        place = folder.with_name(f"{folder.name}.train")
        train_lm(
            model,
            data(tokenizer),
            _options(lab, way.steps, way.rate),
            work=place,
            weights=way.shares,
            prepare=frozen.prepare if frozen else None,
        )
        if frozen:
            frozen.check()
        _save(model, tokenizer, start, folder, place)

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
    """New rows at the mean row, as in a branch."""
    tokenizer.add_tokens(list(tokens))
    rows = {}
    for name in ("get_input_embeddings", "get_output_embeddings"):
        rows[name] = getattr(model, name)().weight.detach().mean(0)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for name, mean in rows.items():
        getattr(model, name)().weight.data[-len(tokens) :] = mean


def _set_top_k(model: Any, top_k: int) -> None:
    model.config.num_experts_per_tok = top_k
    for module in model.modules():
        if hasattr(module, "top_k"):
            module.top_k = top_k


def _save(model: Any, tokenizer: Any, start: Path, out: Path, place: Path) -> None:
    """Write the model; a branch takes its manifest along."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for name in ("branch.json", "merge.json"):
        if (start / name).exists():
            shutil.copyfile(start / name, out / name)
    shutil.rmtree(place, ignore_errors=True)
