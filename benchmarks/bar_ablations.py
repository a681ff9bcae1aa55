"""Ablations of BAR at one seed, beside the stages that bar_claims.py has made.

    python benchmarks/bar_ablations.py --work DIR [--only NAME ...] [--seed 0]

Each name is resumable on its own; rows land in DIR/seedN/scores and print with
`bar_claims_tables.py`. What an ablation needs of the main table is made if it is missing.

- `tool-frozen`: tool use with embeddings and head frozen, new rows equal or spread by noise.
- `opened`: finetuning opens no shared tensor but the new tokens' rows (rows `-least`).
- `released`: embedding and head open for tool use alone, as in the authors' scripts.
- `added`: shared weights as the anchor's plus half the sum of the branches' changes (ours).
- `router-data`: routers trained on 1 to 100 % of the chats; `router-data-least`: on 20 %, of
  branches as in `opened`.
- `active`: fewer active experts, routers trained for it (`active-K`) or not (`naive-K`).
- `domains`: anchor with two, then three of the four branches.
- `upgrade`: the merged model before code, or mathematics, was mid-trained.
- `better-data`: the merged model when code had a twentieth of its texts and chats.
- `domain-only`: each branch's supervised stage without the general mix.
- `rl`: code with a third stage, GRPO, its shared tensors open as in the paper, at two learning
  rates; `rl-frozen`: the same with them frozen; `rl-vocabulary`: frozen but for embedding and head.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bar_claims import anchor, bar, base, branch_of
from bar_scores import Lab, score, stage
from bar_stages import (
    BRANCHES,
    MID_STEPS,
    TOKEN_NOISE,
    adapted,
    branch,
    merged,
    mid_stage,
    rl_stage,
    route,
    sft_stage,
)
from moegraft.bar.opened import Level
from moegraft.bar.stages import StageRecipe

Rows = Iterator[tuple[str, Path]]
LEAST_OPEN = {"math": "expert", "code": "expert", "tool": "tokens", "safety": "expert"}
"""The least that each domain's finetuning can do with."""
RL_RATES = (1e-4, 3e-4)
"""Each freeze set at each rate: one that is frozen may want another than one that is open."""


def tool_frozen(lab: Lab) -> Rows:
    for name, noise in (("tool-frozen", TOKEN_NOISE), ("tool-frozen-equal", 0.0)):
        start = branch(lab, anchor(lab), base(lab), "tool", token_noise=noise)
        yield name, adapted(lab, start, lab.at(name), sft_stage(lab, "tool", opened="expert"))


def rl(lab: Lab) -> Rows:
    yield from _rewarded(lab, "rl", "shared")


def rl_frozen(lab: Lab) -> Rows:
    yield from _rewarded(lab, "rl-frozen", "expert")


def rl_vocabulary(lab: Lab) -> Rows:
    yield from _rewarded(lab, "rl-vocabulary", "vocabulary")


def opened(lab: Lab) -> Rows:
    """Finetuning that opens the expert and the new tokens' rows, so that nothing is averaged."""
    own = [_least(lab, domain) for domain in BRANCHES]
    for domain, folder in zip(BRANCHES, own, strict=True):
        yield f"branch-{domain}-{LEAST_OPEN[domain]}", folder
    yield from _merged_and_routed(lab, "least", own)


def released(lab: Lab) -> Rows:
    """The authors' scripts: embedding and head open for tool use alone."""
    parts = [branch_of(lab, d) if d == "tool" else _least(lab, d) for d in BRANCHES]
    yield from _merged_and_routed(lab, "released", parts)


def added(lab: Lab) -> Rows:
    """Not the paper's: changes of shared weights are added up, where the mean dilutes them."""
    parts = [branch_of(lab, domain) for domain in BRANCHES]
    place = lab.at("merged-added")
    whole = merged(lab, anchor(lab), parts, place, "bar", shared="sum:0.5")
    yield "merged-added", whole
    yield "bar-added", route(lab, whole, lab.at("bar-added"))


def router_data(lab: Lab) -> Rows:
    for percent in (1, 20, 100):
        name = f"router-{percent}%"
        yield name, route(lab, bar(lab), lab.at(f"router-{percent}"), share=percent / 100)


def router_data_least(lab: Lab) -> Rows:
    """More data for the routers of branches that opened the least."""
    whole = next(folder for name, folder in opened(lab) if name == "merged-least")
    yield "router-20%-least", route(lab, whole, lab.at("router-20-least"), share=0.2)


def active(lab: Lab) -> Rows:
    for top_k in range(len(BRANCHES), 0, -1):
        yield f"active-{top_k}", route(lab, bar(lab), lab.at(f"active-{top_k}"), top_k=top_k)
        routed = route(lab, bar(lab), lab.at("bar"))
        yield f"naive-{top_k}", _with_top_k(lab, routed, top_k)


def domains(lab: Lab) -> Rows:
    for count in (2, 3):
        chosen = BRANCHES[:count]
        parts = [branch_of(lab, domain) for domain in chosen]
        name = f"domains-{count + 1}"
        whole = merged(lab, anchor(lab), parts, lab.at(f"{name}-merged"), "bar")
        yield name, route(lab, whole, lab.at(name), names=("general", *chosen))


def upgrade(lab: Lab) -> Rows:
    """The deployed models of yesterday: one domain without its mid-training."""
    for domain in MID_STEPS:
        start = branch(lab, anchor(lab), base(lab), domain)
        old = adapted(lab, start, lab.at(f"branch-{domain}-old"), sft_stage(lab, domain))
        parts = [old if other == domain else branch_of(lab, other) for other in BRANCHES]
        whole = merged(lab, anchor(lab), parts, lab.at(f"old-{domain}-merged"), "bar")
        yield f"branch-{domain}-old", old
        yield f"old-{domain}", route(lab, whole, lab.at(f"old-{domain}"))


def better_data(lab: Lab) -> Rows:
    """The deployed model of yesterday: code with few texts and chats, in as many steps."""

    def few(stage_recipe: StageRecipe) -> StageRecipe:
        source = Path(stage_recipe.data[0])
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
        less = source.with_name(f"few-{source.name}")
        less.write_text("".join(lines[: len(lines) // 20]), encoding="utf-8")
        return replace(stage_recipe, data=(str(less),))

    start = branch(lab, anchor(lab), base(lab), "code")
    stages = few(mid_stage(lab, "code")), few(sft_stage(lab, "code"))
    old = adapted(lab, start, lab.at("branch-code-few"), *stages)
    parts = [old if domain == "code" else branch_of(lab, domain) for domain in BRANCHES]
    whole = merged(lab, anchor(lab), parts, lab.at("few-code-merged"), "bar")
    yield "branch-code-few", old
    yield "few-code", route(lab, whole, lab.at("few-code"))


def domain_only(lab: Lab) -> Rows:
    for domain in BRANCHES:
        alone = sft_stage(lab, domain, with_general=False)
        start = _before_sft(lab, domain)
        yield f"only-{domain}", adapted(lab, start, lab.at(f"only-{domain}"), alone)


def _rewarded(lab: Lab, name: str, opened: Level) -> Rows:
    """Code after reinforcement learning, alone and merged, by learning rate."""
    for rate in RL_RATES:
        own = f"{name}-{rate:.0e}".replace("e-0", "e-")
        last = rl_stage(lab, opened=opened, rate=rate)
        better = adapted(lab, branch_of(lab, "code"), lab.at(f"branch-code-{own}"), last)
        yield f"branch-code-{own}", better
        parts = [better if other == "code" else branch_of(lab, other) for other in BRANCHES]
        yield from _merged_and_routed(lab, own, parts)


def _least(lab: Lab, domain: str) -> Path:
    """The branch of a domain whose finetuning opened the least."""
    level = LEAST_OPEN[domain]
    start, last = _before_sft(lab, domain), sft_stage(lab, domain, opened=level)
    return adapted(lab, start, lab.at(f"branch-{domain}-{level}"), last)


def _merged_and_routed(lab: Lab, name: str, parts: Sequence[Path]) -> Rows:
    whole = merged(lab, anchor(lab), parts, lab.at(f"merged-{name}"), "bar")
    yield f"merged-{name}", whole
    yield f"bar-{name}", route(lab, whole, lab.at(f"bar-{name}"))


def _before_sft(lab: Lab, domain: str) -> Path:
    """The branch of a domain before its supervised stage."""
    if domain not in MID_STEPS:
        return branch(lab, anchor(lab), base(lab), domain)
    run = branch_of(lab, domain).parent
    return run / "stages" / "1-mid" / "branch"


def _with_top_k(lab: Lab, model: Path, top_k: int) -> Path:
    """The same weights, with fewer active experts in the config."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        for file in model.iterdir():
            if file.name not in ("config.json", "DONE"):
                (folder / file.name).symlink_to(file.resolve())
        config = json.loads((model / "config.json").read_text())
        text = json.dumps(config | {"num_experts_per_tok": top_k})
        (folder / "config.json").write_text(text)

    return stage(lab.at(f"naive-{top_k}"), make)


ABLATIONS: dict[str, Callable[[Lab], Rows]] = {
    "tool-frozen": tool_frozen,
    "opened": opened,
    "released": released,
    "added": added,
    "router-data": router_data,
    "router-data-least": router_data_least,
    "active": active,
    "domains": domains,
    "upgrade": upgrade,
    "better-data": better_data,
    "domain-only": domain_only,
    "rl": rl,
    "rl-frozen": rl_frozen,
    "rl-vocabulary": rl_vocabulary,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="as of bar_claims.py")
    parser.add_argument("--seed", type=int, default=0, help="of data and order")
    parser.add_argument("--only", nargs="+", choices=[*ABLATIONS], default=[*ABLATIONS])
    arguments = parser.parse_args()
    lab = Lab(arguments.work, arguments.seed)
    for name in arguments.only:
        for row, folder in ABLATIONS[name](lab):
            score(lab, row, folder)


if __name__ == "__main__":
    main()
