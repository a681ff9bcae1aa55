"""Tables of `blame.py`: methods, pairs, and what taking back restores."""

import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

import moegraft

MAIN = "integrated gradients, 4 midpoints"
RANDOM = "random"
TOP = {"experts": 8, "components": 4}


def number(values: Sequence[float | None], style: str = ".2f") -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):{style}}" if known else "-"


def method_table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Methods by row, means over pairs, one table per kind of unit."""
    out = []
    for grain, top in TOP.items():
        own = [r for r in results if r["grain"] == grain]
        if not own:
            continue
        out += [
            f"| {grain}: {len(own)} pairs | Spearman with single swaps (worst) | "
            f"gain kept by the top {top} | planted ones among the first | seconds |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        methods = max((list(r["methods"]) for r in own), key=len)
        for name in methods:
            rows = [r["methods"][name] for r in own if name in r["methods"]]
            # Where the donor is worse there is no gain to keep.
            gains = [
                r["methods"][name]["kept"] for r in own if r["gain"] > 0 and name in r["methods"]
            ]
            if rows:
                rhos = [row["spearman"] for row in rows]
                out.append(
                    f"| {name} | {number(rhos)} ({min(rhos):.2f}) | "
                    f"{number(gains, '.0%')} | "
                    f"{number([row['found'] for row in rows], '.0%')} | "
                    f"{number([row['seconds'] for row in rows])} |"
                )
        out.append("")
    return out


def pair_table(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Pairs by row: gain, completeness, and the main method against swaps."""
    shown = {
        "integrated": MAIN,
        "first-order": "first-order gradient at the host",
        "swaps": "single swaps on the ranking items",
        "norm": "norm of the difference",
    }
    heads = " | ".join(shown)
    out = [
        "| pair | units | gain, nats | sum of attributions / measured "
        f"| Spearman: {heads} | kept: {heads} |",
        "| --- | --- |" + " ---: |" * (2 + 2 * len(shown)),
    ]
    for name, r in zip(names, results, strict=True):
        rhos = [r["methods"][m]["spearman"] for m in shown.values()]
        shares = [r["methods"][m]["kept"] for m in shown.values()]
        total, measured = r["completeness"]["sum"], r["completeness"]["measured"]
        out.append(
            f"| {name} | {r['grain']} | {r['gain']:.2f} | {total:.2f} / {measured:.2f} | "
            + " | ".join(f"{rho:.2f}" for rho in rhos)
            + " | "
            + " | ".join(f"{share:.0%}" for share in shares)
            + " |"
        )
    return [*out, ""]


def condition_tables(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Methods by row under each condition."""
    out = []
    for condition in dict.fromkeys(names):
        own = [result for name, result in zip(names, results, strict=True) if name == condition]
        out += [f"### {condition}", "", *method_table(own)]
    return out


def harm_table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    out = [
        "| pair | experts ranked by | taken back | loss restored | gain kept |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for pair, harm in results.items():
        for key, row in harm["rankings"].items():
            name, count = key.split("|")
            out.append(f"| {pair} | {name} | {count} | {row['restored']:.0%} | {row['kept']:.0%} |")
    return [*out, ""]


def surroundings() -> list[str]:
    run = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(run, capture_output=True, text=True, check=False).stdout.strip()
    return [
        f"moegraft {moegraft.__version__} ({commit}), torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {torch.get_num_threads()} thread on {platform.machine()} "
        f"({os.cpu_count()} cores), float32.",
        "",
    ]
