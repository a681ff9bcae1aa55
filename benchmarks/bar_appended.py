"""Experts appended to the nano MoE for new domains: what they learn, and what the host keeps.

    python benchmarks/bar_appended.py --work DIR [--seed 0]

Code and safety each append an expert to every layer of `nano:rlvr` (`toward`: the domain's text
reaches it from the start), train it alone on text and chats, half of them of the host's own worlds,
and are merged; nothing old moves.
Greedy answers on 200 items a kind of question, the host's own worlds included. Resumable.
"""

import argparse
import json
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from bar_scores import NUM_ITEMS, Lab, answers, load, stage, texts_of
from bar_stages import LENGTH, MID_RATE, SFT_RATE, adapted, worlds
from moegraft.bar.append import plan_append, write_append
from moegraft.bar.branch import BranchRecipe
from moegraft.bar.merge import MergeRecipe, plan_merge, write_merge
from moegraft.bar.stages import StageRecipe
from moegraft.checkpoint import open_checkpoint
from moegraft.evals.extract import extract, same_answer
from moegraft.nano import domains
from moegraft.nano import worlds as host_worlds
from moegraft.nano.recipes import VERIFIER_OF

HOST = "nano:rlvr"
STEPS = {"code": 600, "safety": 300}
"""Of text, and as many of chats."""
WORLD_TOKENS = {"math": 80, "reading": 80, "science": 60}
NUM_PROBES = 40
"""Texts on which nothing may change, and texts that shall reach the new expert."""
NUM_HOST = 2000
"""Texts, and chats, of what the host knows already."""


def host_texts(rng: Random) -> list[str]:
    """What the host was trained on: documents, and solved questions in its chat form."""
    texts = [*islice(host_worlds.documents(rng), NUM_PROBES)]
    for name, world in host_worlds.WORLDS.items():
        for _ in range(NUM_PROBES // 2):
            item = host_worlds.practice_item(name, rng)
            texts.append(_chat(world.prompt(item), world.response(item)))
    return texts


def domain_texts(domain: str, rng: Random) -> list[str]:
    """Documents and chats of a domain."""
    texts = [*islice(domains.documents(rng, domains.TEXT_MIX[domain]), NUM_PROBES)]
    for record in islice(domains.chats(domain, rng), NUM_PROBES):
        user, assistant = record["messages"]
        texts.append(_chat(user["content"], assistant["content"]))
    return texts


def _chat(user: str, assistant: str) -> str:
    return f"<|user|>\n{user}\n<|assistant|>\n{assistant}"


def host_data(lab: Lab) -> Path:
    """What the host was trained on, as text and chats: half of what a branch reads."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        rng = Random(f"host {lab.seed}")
        texts = [{"text": text} for text in islice(host_worlds.documents(rng), NUM_HOST)]
        chats = []
        for i in range(NUM_HOST):
            name, world = [*host_worlds.WORLDS.items()][i % 3]
            item = host_worlds.practice_item(name, rng)
            turns = ("user", world.prompt(item)), ("assistant", world.response(item))
            chats.append({"messages": [{"role": role, "content": said} for role, said in turns]})
        for name, rows in (("text", texts), ("chat", chats)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")

    return stage(lab.at("host"), make)


def appended(lab: Lab, domain: str) -> Path:
    """The untrained branch: one more expert in every layer of the host."""

    def make(folder: Path) -> None:
        rng = Random(f"appended {domain} {lab.seed}")
        texts = {"probe": host_texts(rng), "toward": domain_texts(domain, rng)}
        files = {}
        for name, lines in texts.items():
            file = folder.with_name(f"{folder.name}-{name}.txt")
            file.write_text("\n\n".join(line.replace("\n\n", "\n") for line in lines))
            files[name] = str(file)
        write_append(plan_append(BranchRecipe(HOST, domain, seed=lab.seed, **files)), folder)

    return stage(lab.at(f"appended-{domain}-start"), make)


def trained(lab: Lab, domain: str) -> Path:
    """The branch after mid-training and finetuning of its expert and router row alone."""
    about: dict[str, Any] = {
        "steps": STEPS[domain],
        "length": LENGTH,
        "batch": 4,
        "scheduler": "linear",
        "general_share": 0.5,
    }
    text, chats = (str(worlds(lab) / domain / name) for name in ("text.jsonl", "chat.jsonl"))
    old_text, old_chats = (str(host_data(lab) / name) for name in ("text.jsonl", "chat.jsonl"))
    return adapted(
        lab,
        appended(lab, domain),
        lab.at(f"appended-{domain}"),
        StageRecipe("mid", (text,), general=(old_text,), learning_rate=MID_RATE, **about),
        StageRecipe("sft", (chats,), general=(old_chats,), learning_rate=SFT_RATE, **about),
    )


def merged(lab: Lab) -> Path:
    """Both branches' experts behind the host's."""

    def make(folder: Path) -> None:
        sources = tuple(str(trained(lab, domain)) for domain in STEPS)
        write_merge(plan_merge(MergeRecipe(anchor=HOST, branches=sources, seed=lab.seed)), folder)

    return stage(lab.at("appended-merged"), make)


def accuracies(folder: Path) -> dict[str, float]:
    """Percent right by kind of question: the host's three worlds, then the new domains."""
    model, tokenizer = load(folder)
    model.eval()
    found = {}
    for name, world in host_worlds.WORLDS.items():
        items = host_worlds.test_items(name)[:NUM_ITEMS]
        prompts = [world.prompt(item) for item in items]
        kind, said = VERIFIER_OF[name], texts_of(model, tokenizer, prompts, WORLD_TOKENS[name])
        right = [
            same_answer(kind, extract(kind, text), [host_worlds.gold(name, item)])
            for item, text in zip(items, said, strict=True)
        ]
        found[name] = 100 * sum(right) / len(items)
    for domain in STEPS:
        items, check = domains.test_items(domain, NUM_ITEMS), domains.KINDS[domain].check
        said = answers(model, tokenizer, domain, items)
        right = [check(item, text) for item, text in zip(items, said, strict=True)]
        found[domain] = 100 * sum(right) / len(items)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="as of bar_claims.py")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    lab = Lab(arguments.work, arguments.seed)
    print(f"| model | {' | '.join([*host_worlds.WORLDS, *STEPS])} |")
    print(f"| --- |{' ---: |' * (len(host_worlds.WORLDS) + len(STEPS))}")
    rows = {
        "host": lambda: open_checkpoint(HOST).path,
        **{domain: lambda domain=domain: trained(lab, domain) for domain in STEPS},
        "both": lambda: merged(lab),
    }
    for name, made in rows.items():
        file = lab.at("appended-scores") / f"{name}.json"
        if not file.exists():
            scores = accuracies(made())
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(scores) + "\n")
        cells = [f"{value:.1f}" for value in json.loads(file.read_text()).values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
