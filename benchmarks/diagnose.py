"""Why router transfer hurts, in numbers: the nano pair, or any other two checkpoints.

    python benchmarks/diagnose.py [--host nano:sft-dpo --donor nano:rlvr] [--limit 500] --out DIR

Reads the prompts and gold answers of the conditions with host, donor, the paper's configurations
and those that the 2 x 2 of router and experts needs, and writes DIR/diagnose.json, the figures and
DIR/diagnose.md. Deterministic on one machine; a minute or so per 100 texts of the nano pair and
core.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import moegraft
from moegraft.evals import load_condition
from moegraft.evals.execution import dtype_on
from moegraft.evals.texts import condition_texts
from moegraft.report.routing_figures import write_diagnosis_figures
from moegraft.runtime import Host
from moegraft.sweep import SweepRecipe
from moegraft.sweep.diagnose import diagnose, diagnosed_configurations


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def mean(rows: list[list[float]]) -> float:
    return float(np.mean(rows))


def agreement_rows(found: dict[str, Any]) -> list[str]:
    lines = [
        "| configuration | same experts as host, % | as donor, % | drift from host | from donor |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, parents in found["agreement"].items():
        cells = [name]
        for measure in ("overlap", "distance"):
            for parent in ("host", "donor"):
                if parent not in parents:
                    cells.append("-")
                elif measure == "overlap":
                    cells.append(percent(mean(parents[parent][measure])))
                else:
                    cells.append(f"{mean([row[-1:] for row in parents[parent][measure]]):.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def cause_rows(found: dict[str, Any]) -> list[str]:
    columns = [
        np.array(found["agreement"]["host"]["donor"]["overlap"]).mean(axis=0),
        np.array(found["routers"]["weights"]["overlap"]).mean(axis=0),
        np.array(found["routers"]["hidden"]["overlap"]).mean(axis=0),
    ]
    lines = [
        "| layer | both differ, % | routers only, % | hidden states only, % |",
        "| --- | ---: | ---: | ---: |",
    ]
    for layer, *values in zip(found["layers"], *columns, strict=True):
        lines.append(f"| {layer} | {' | '.join(map(percent, values))} |")
    means = " | ".join(percent(float(column.mean())) for column in columns)
    return [*lines, f"| mean | {means} |"]


def pairing_rows(found: dict[str, Any]) -> list[str]:
    def effect(contrast: dict[str, Any]) -> str:
        low, high = contrast["interval"]
        return f"{contrast['value']:+.3f} [{low:.3f}, {high:.3f}]"

    lines = [
        "| all else | condition | texts | router H, experts H | D, H | H, D | D, D "
        "| donor's router on host's experts | on donor's experts | mismatch |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in found["coadaptation"]:
        losses = " | ".join(f"{cell['loss']:.3f}" for cell in entry["cells"])
        effects = " | ".join(
            effect(entry[name])
            for name in ("router_on_host_experts", "router_on_donor_experts", "mismatch")
        )
        head = f"{entry['others']} | {entry['condition']} | {entry['num_texts']}"
        lines.append(f"| {head} | {losses} | {effects} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="nano:sft-dpo")
    parser.add_argument("--donor", default="nano:rlvr")
    parser.add_argument("--conditions", nargs="*")
    parser.add_argument("--data", type=Path, help="folder with the tasks' data")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    recipe = SweepRecipe(
        arguments.host, arguments.donor, conditions=tuple(arguments.conditions or ())
    ).resolved()
    host = Host.load(
        recipe.host,
        {"donor": recipe.donor},
        device=arguments.device,
        dtype=dtype_on(arguments.device, "auto"),
    )
    texts = {
        name: condition_texts(
            load_condition(
                name, tokenizer=host.tokenizer, data_dir=arguments.data, limit=arguments.limit
            )
        )
        for name in recipe.conditions
    }
    began = time.monotonic()
    found = diagnose(host, diagnosed_configurations(recipe), texts)
    seconds = time.monotonic() - began
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "diagnose.json").write_text(json.dumps(found) + "\n")
    write_diagnosis_figures(found, arguments.out)
    num_texts = sum(map(len, texts.values()))
    lines = [
        "# Why router transfer hurts",
        "",
        f"Host {recipe.host}, donor {recipe.donor}; {num_texts} texts, "
        f"{len(found['configurations'])} configurations, {seconds:.0f} s on {host.device} "
        f"({torch.get_num_threads()} threads, {platform.machine()}), {found['dtype']}; moegraft "
        f"{moegraft.__version__}, torch {torch.__version__}.",
        "",
        *(f"- {sentence}" for sentence in found["sentences"]),
        "",
        "Agreement with the parents (experts: mean over layers; drift: behind the last layer):",
        "",
        *agreement_rows(found),
        "",
        "Chosen experts that host and donor have in common:",
        "",
        *cause_rows(found),
        "",
        "Loss in nats per token of the gold answer, 95% paired bootstrap intervals over items:",
        "",
        *pairing_rows(found),
    ]
    text = "\n".join(lines) + "\n"
    (arguments.out / "diagnose.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
