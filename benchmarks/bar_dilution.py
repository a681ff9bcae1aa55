"""Where a merge loses a branch's skill: in the averaged shared tensors, or at the routers.

    python benchmarks/bar_dilution.py --work DIR [--seed 0]

Loss on answers of chats that neither training nor the test items hold, nats per token: each branch
alone; the branch with the shared tensors of the merge, which is what the merged model would be if
its routers chose between anchor and that expert as the branch did; the merged model before and
after router training. Reads what bar_claims.py and the ablation `opened` have made; `least`
branches keep embedding and head frozen but for new tokens' rows, so nothing of theirs is averaged.
"""

import argparse
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from bar_ablations import LEAST_OPEN
from bar_scores import Lab, load
from bar_stages import LENGTH
from moegraft.nano import domains
from moegraft.train.chats import pack_chats
from moegraft.train.lm import validation_loss

NUM_CHATS = 100


def loss(model: Any, tokenizer: Any, domain: str) -> float:
    """Of the same chats in every call."""
    records = islice(domains.chats(domain, Random(f"dilution {domain}")), NUM_CHATS)
    blocks = pack_chats((record["messages"] for record in records), tokenizer, LENGTH)
    return validation_loss(model.eval(), blocks)


def diluted(branch: Any, merged: Any) -> Any:
    """The branch with the merge's shared tensors."""
    own, shared = branch.state_dict(), merged.state_dict()
    for name, tensor in own.items():
        if ".experts." not in name and ".gate." not in name:
            tensor.copy_(shared[name][: tensor.shape[0]])
    return branch


def rows(lab: Lab, level: str) -> list[list[str]]:
    """A row a domain, of branches whose finetuning opened the `vocabulary` or the `least`."""
    least = level == "least"
    merged, tokenizer = load(lab.at("merged-least" if least else "merged"))
    routed, _ = load(lab.at("bar-least" if least else "bar"))
    found = []
    for domain, opened in LEAST_OPEN.items():
        name = f"branch-{domain}-{opened}" if least else f"branch-{domain}"
        branch, own = load(lab.at(name) / "branch")
        losses = [
            loss(branch, own, domain),
            loss(diluted(branch, merged), own, domain),
            loss(merged, tokenizer, domain),
            loss(routed, tokenizer, domain),
        ]
        found.append([level, domain, *(f"{value:.2f}" for value in losses)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="as of bar_claims.py")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(
        "| open in finetuning | domain | branch | its shared tensors averaged | merged | routed |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for level in ("vocabulary", "least"):
        for row in rows(Lab(arguments.work, arguments.seed), level):
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
