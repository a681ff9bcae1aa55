"""BAR's claims on a dense model of a million parameters and five domains: the main table.

    python benchmarks/bar_claims.py --work DIR [--seeds 0 1 2] [--only ROW ...]

Every stage is a folder with a DONE file under DIR; the same command resumes, and another command
(a seed, a row) reuses what is there. The base model P is pretrained once and the anchor A once,
for all seeds: A is P post-trained on reading, science and everyday requests, without mathematics
and programs. `--only` limits which rows are made; `bar_claims_tables.py` prints what there is.

Rows: `start` (A), `branch-DOMAIN` (each branch alone), `merged` (routers untrained), `bar`,
`retrain-mid` and `retrain` (P on everything at once, with and without mid-training), `sequential`
(A on one domain after the other), `average` (weights of dense models), `btx` (their FFNs as
experts, the rest averaged, routers trained).
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from bar_scores import Lab, score, stage
from bar_stages import (
    BRANCHES,
    MID_STEPS,
    NEW_TOKENS,
    SFT_STEPS,
    adapted,
    branch,
    dense_mid,
    dense_sft,
    dense_sft_of,
    merged,
    mid_stage,
    route,
    sft_stage,
    widened,
)
from moegraft.nano import dense


def base(lab: Lab) -> Path:
    """P: pretrained, shared by all seeds."""

    def make(folder: Path) -> None:
        dense.build(folder / "model")

    return stage(lab.work / "base", make, keep=True) / "model"


def anchor(lab: Lab) -> Path:
    """A: P after supervised finetuning on the general domain, shared by all seeds."""
    start = base(lab)
    place = lab.work / "anchor"
    return stage(place, lambda folder: dense.post_train(start, folder / "model")) / "model"


def branch_of(lab: Lab, domain: str) -> Path:
    """A branch after its stages: mid-training where the domain has one, then supervised."""
    start = branch(lab, anchor(lab), base(lab), domain)
    first = [mid_stage(lab, domain)] if domain in MID_STEPS else []
    return adapted(lab, start, lab.at(f"branch-{domain}"), *first, sft_stage(lab, domain))


def expert_of(lab: Lab, domain: str) -> Path:
    """A dense model with the same stages as the branch, from P: what BTX and averaging merge."""
    start = base(lab)
    if domain in MID_STEPS:
        start = dense_mid(lab, start, lab.at(f"dense-{domain}-mid"), [domain], MID_STEPS[domain])
    return dense_sft_of(lab, start, lab.at(f"dense-{domain}"), domain)


def retrained(lab: Lab, *, with_mid: bool) -> Path:
    """One dense model of everything, from P; the general mix is read once, not once a domain."""
    start = base(lab)
    if with_mid:
        steps = sum(MID_STEPS.values())
        start = dense_mid(lab, start, lab.at("retrain-mid-mid"), [*MID_STEPS], steps)
    halves = {domain: steps / 2 for domain, steps in SFT_STEPS.items()}
    shares = halves | {"general": max(halves.values())}
    name = "retrain-mid" if with_mid else "retrain"
    steps = round(sum(shares.values()))
    return dense_sft(lab, start, lab.at(name), shares, steps=steps, new_tokens=NEW_TOKENS)


def sequential(lab: Lab) -> Path:
    """A on one domain after the other, each with its stages and the general mix."""
    start = anchor(lab)
    for domain in BRANCHES:
        if domain in MID_STEPS:
            place = lab.at(f"sequential-{domain}-mid")
            start = dense_mid(lab, start, place, [domain], MID_STEPS[domain])
        start = dense_sft_of(lab, start, lab.at(f"sequential-{domain}"), domain)
    return start


def bar(lab: Lab) -> Path:
    """All branches and the anchor, merged."""
    parts = [branch_of(lab, domain) for domain in BRANCHES]
    return merged(lab, anchor(lab), parts, lab.at("merged"), "bar")


def baseline(lab: Lab, method: str) -> Path:
    """Dense models and the anchor, merged by `method`."""
    parts = []
    for domain in BRANCHES:
        part = expert_of(lab, domain)
        parts.append(part if domain == "tool" else widened(lab, part, f"dense-{domain}-wide"))
    start = widened(lab, anchor(lab), "anchor-wide")
    return merged(lab, start, parts, lab.at(f"{method}-raw"), method)


ROWS: dict[str, Callable[[Lab], Path]] = {
    "start": anchor,
    **{f"branch-{domain}": lambda lab, d=domain: branch_of(lab, d) for domain in BRANCHES},
    "merged": bar,
    "bar": lambda lab: route(lab, bar(lab), lab.at("bar")),
    "retrain-mid": lambda lab: retrained(lab, with_mid=True),
    "retrain": lambda lab: retrained(lab, with_mid=False),
    "sequential": sequential,
    "average": lambda lab: baseline(lab, "average"),
    "btx": lambda lab: route(lab, baseline(lab, "btx"), lab.at("btx")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="stages and scores, to resume")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of data and order")
    parser.add_argument("--only", nargs="+", choices=[*ROWS], default=[*ROWS], help="these rows")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        lab = Lab(arguments.work, seed)
        for row in arguments.only:
            score(lab, row, ROWS[row](lab))


if __name__ == "__main__":
    main()
