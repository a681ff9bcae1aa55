"""Which ranking of units comes nearest to swapping each one in? On planted pairs, and on any pair.

    python benchmarks/blame.py --work DIR [--out FILE.md]
    python benchmarks/blame.py --work DIR --pairs 0 --host nano:sft-dpo --donor nano:rlvr \\
        --conditions nano_math/cot,nano_reading/0-shot [--out FILE.md]

Fourteen pairs are planted: seven kinds, two seeds each (`blame_pairs.py`). Every method ranks units
on some items; the reference is what each unit changes when it alone is swapped in, on other items.
Results of a pair are kept under --work: the same command resumes.
"""

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from scipy.stats import spearmanr
from transformers import OlmoeForCausalLM

import blame_pairs as planting
import blame_tables as tables
from blame_tables import MAIN, RANDOM, TOP
from moegraft.evals.condition import Item
from moegraft.evals.harness import load_condition
from moegraft.runtime import Host
from moegraft.sweep import attribution
from moegraft.sweep.attribution import Question, ranked
from moegraft.sweep.units import units_of
from moegraft.transfer.scope import Slot

METHODS = {
    "integrated gradients, 4 midpoints": lambda q, u: _gradients(q, u, 4, "midpoint"),
    "integrated gradients, 4 Gauss points": lambda q, u: _gradients(q, u, 4, "gauss"),
    "integrated gradients, 1 midpoint": lambda q, u: _gradients(q, u, 1, "midpoint"),
    "first-order gradient at the host": lambda q, u: q.sum_by(attribution.slopes_at(q, 0.0), u),
    "norm of the difference": attribution.difference_norms,
    "routing frequency": lambda q, u: q.sum_by(attribution.routing_frequencies(q), u),
    "single swaps on the ranking items": attribution.single_swaps,
}
RANDOM_DRAWS = 20
NUM_RANK, NUM_HELD = 64, 128


def _gradients(question: Question, units: Sequence[Slot], points: int, rule: Any) -> Any:
    found = attribution.integrated_gradients(question, num_points=points, rule=rule)
    return question.sum_by(found, units)


def study(
    host: Host,
    ranking: Sequence[Item],
    held: Sequence[Item],
    grain: Any,
    places: Sequence[tuple[int, int]] = (),
) -> dict[str, Any]:
    """Rank the units of one pair with every method, and judge the rankings on other items."""
    units = units_of(host.checkpoint, grain)
    question, reference = (Question(host, tuple(items)) for items in (ranking, held))
    before = reference.logprobs().mean()
    with reference.taking_all():
        gain = float(reference.logprobs().mean() - before)
    swaps = attribution.single_swaps(reference, units)
    planted = {Slot("experts", *place) for place in places}

    def judge(values: dict[Slot, float]) -> dict[str, float | None]:
        order = ranked(values)
        with reference.taking(order[: TOP[grain]]):
            kept = float(reference.logprobs().mean() - before) / gain
        found = len(planted.intersection(order[: len(planted)])) / len(planted) if planted else None
        rho = float(spearmanr([values[u] for u in units], [swaps[u] for u in units]).statistic)
        return {"spearman": rho, "kept": kept, "found": found}

    result: dict[str, Any] = {}
    for name, method in METHODS.items():
        if name == "routing frequency" and grain != "experts":
            continue
        start = time.process_time()
        values = method(question, units)
        seconds = time.process_time() - start
        result[name] = {**judge(values), "seconds": seconds}
    draws = [judge(attribution.random_values(units, seed)) for seed in range(RANDOM_DRAWS)]
    result[RANDOM] = {
        key: None if draws[0][key] is None else statistics.fmean(d[key] or 0.0 for d in draws)
        for key in draws[0]
    } | {"seconds": 0.0}
    finest = attribution.integrated_gradients(question)
    with question.taking_all():
        after = question.logprobs().mean()
    measured = float(after - question.logprobs().mean())
    return {
        "grain": grain,
        "gain": gain,
        "completeness": {"sum": sum(finest.values()), "measured": measured},
        "methods": result,
    }


def study_harm(
    worse: Host,
    gained: Sequence[Item],
    harmed: Sequence[Item],
    num_rank: int = NUM_RANK,
    counts: Sequence[int] = (4, 8),
) -> dict[str, Any]:
    """Take experts of a donor back: is what it lost restored, and is what it gained kept?

    Args:
        worse: the donor as host, with the host as its donor.
        gained: items that the donor answers better.
        harmed: items that it answers worse.
        num_rank: how many of each are for the ranking; the rest judges.
        counts: how many experts to take back.
    """
    units = units_of(worse.checkpoint, "experts")
    groups = {"gain": gained, "harm": harmed}
    rank = {name: Question(worse, tuple(items[:num_rank])) for name, items in groups.items()}
    held = {name: Question(worse, tuple(items[num_rank:])) for name, items in groups.items()}
    donor = {name: float(q.logprobs().mean()) for name, q in held.items()}
    with held["gain"].taking_all():
        host = {name: float(q.logprobs().mean()) for name, q in held.items()}

    def both(method: Callable[..., dict[Slot, float]]) -> dict[Slot, float]:
        ours, theirs = (method(rank[name], units) for name in ("harm", "gain"))
        return {unit: ours[unit] + theirs[unit] for unit in units}

    main, swap = METHODS[MAIN], attribution.single_swaps
    rankings = {
        f"{MAIN}: harm": main(rank["harm"], units),
        f"{MAIN}: harm and gain": both(main),
        "single swaps: harm": swap(rank["harm"], units),
        "single swaps: harm and gain": both(swap),
        "norm of the difference": attribution.difference_norms(rank["harm"], units),
    }

    def take_back(values: dict[Slot, float], count: int) -> dict[str, float]:
        with held["gain"].taking(ranked(values)[:count]):
            now = {key: float(q.logprobs().mean()) for key, q in held.items()}
        return {
            "restored": (now["harm"] - donor["harm"]) / (host["harm"] - donor["harm"]),
            "kept": (now["gain"] - host["gain"]) / (donor["gain"] - host["gain"]),
        }

    found: dict[str, Any] = {}
    for count in counts:
        for name, values in rankings.items():
            found[f"{name}|{count}"] = take_back(values, count)
        draws = [take_back(attribution.random_values(units, s), count) for s in range(RANDOM_DRAWS)]
        found[f"{RANDOM}, mean of {RANDOM_DRAWS}|{count}"] = {
            key: statistics.fmean(draw[key] for draw in draws) for key in draws[0]
        }
    return {"donor": donor, "host": host, "rankings": found}


# --- planted pairs ----------------------------------------------------------------------------


def lines(table: int, seed: int) -> tuple[Item, ...]:
    return planting.items_of(planting.facts(table, seed), 3)


def planted(kind: str, seed: int, work: Path) -> Path:
    """The folder of one planted pair; made when missing."""
    out = work / f"planted-{list(planting.KINDS).index(kind)}-{seed}"
    if out.is_dir():
        return out
    start = time.process_time()
    folder = work / f"base-{seed}"
    if not folder.is_dir():
        planting.base_model(seed).save_pretrained(work / "part")
        (work / "part").rename(folder)
    base = OlmoeForCausalLM.from_pretrained(folder)
    base.set_experts_implementation("eager")
    pair = planting.plant(kind, base.eval(), seed)
    numbers = {"asked": pair.asked, "old": planting.OLD}
    about = {"asked": pair.asked, "places": pair.places, "harmed": pair.harmed, "accuracy": {}}
    aside = out.with_suffix(".part")
    for name, model in (("host", pair.host), ("donor", pair.donor)):
        model.save_pretrained(aside / name)
        for table, number in numbers.items():
            share = planting.accuracy(model, planting.facts(number, seed), 3)
            about["accuracy"][f"{name} on {table}"] = share
    about["seconds"] = time.process_time() - start
    (aside / "about.json").write_text(json.dumps(about))
    aside.rename(out)
    return out


def planted_pair(kind: str, seed: int, work: Path) -> dict[str, Any]:
    """Plant one pair and study it."""
    folder = planted(kind, seed, work)
    start = time.process_time()
    about = json.loads((folder / "about.json").read_text())
    sources = [str(folder / name) for name in ("host", "donor")]
    asked = lines(about["asked"], seed)
    held = asked[NUM_RANK : NUM_RANK + NUM_HELD]
    host = Host.load(sources[0], {"donor": sources[1]}, device="cpu")
    found = study(host, asked[:NUM_RANK], held, planting.KINDS[kind], about["places"])
    if about["harmed"] is not None:
        worse = Host.load(sources[1], {"donor": sources[0]}, device="cpu")
        known = (asked, lines(about["harmed"], seed))
        found["harm"] = study_harm(worse, *(group[: NUM_RANK + NUM_HELD] for group in known))
    seconds = {"training_seconds": about.get("seconds"), "seconds": time.process_time() - start}
    return {"kind": kind, "seed": seed, "accuracy": about["accuracy"], **seconds, **found}


# --- any pair, by name ------------------------------------------------------------------------


def named_pair(host: Host, condition: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Study a real pair under one condition, with both kinds of units."""
    items = items_by_name(host, condition, arguments)
    ranking, held = items[: arguments.items], items[arguments.items :]
    return {grain: study(host, ranking, held, grain) for grain in TOP}


def items_by_name(host: Host, condition: str, arguments: argparse.Namespace) -> tuple[Item, ...]:
    limit = arguments.items + arguments.held
    found = load_condition(
        condition, tokenizer=host.tokenizer, data_dir=arguments.data, limit=limit
    )
    return found.items


def named_harm(worse: Host, gained: str, harmed: str, arguments: argparse.Namespace) -> Any:
    """Take experts of the donor back for one condition and see what another one keeps."""
    groups = [items_by_name(worse, name, arguments) for name in (gained, harmed)]
    return study_harm(worse, *groups, num_rank=arguments.items)


# --- results ----------------------------------------------------------------------------------


def kept_result(path: Path, make: Callable[[], Any]) -> Any:
    """What stands in `path`, or what `make` returns, written there whole."""
    if not path.exists():
        start = time.process_time()
        content = make()
        content.setdefault("seconds", round(time.process_time() - start, 1))
        path.with_suffix(".part").write_text(json.dumps(content, indent=1))
        path.with_suffix(".part").rename(path)
        print(f"{path.stem}: {content['seconds']:.1f} s", flush=True)
    return json.loads(path.read_text())


def write_planted(arguments: argparse.Namespace) -> list[str]:
    keys = [(kind, seed) for seed in (0, 1) for kind in planting.KINDS][: arguments.pairs]
    results = [
        kept_result(
            arguments.work / f"pair-{list(planting.KINDS).index(kind)}-{seed}.json",
            lambda kind=kind, seed=seed: planted_pair(kind, seed, arguments.work),
        )
        for kind, seed in keys
    ]
    names = [f"{r['kind']} ({r['seed']})" for r in results]
    harms = {name: r["harm"] for name, r in zip(names, results, strict=True) if "harm" in r}
    seconds = sum(r["seconds"] for r in results)
    training = [r.get("training_seconds") for r in results]
    made = "" if None in training else f" and {sum(training) / 60:.1f} of training"
    return [
        "## Planted pairs",
        "",
        "    python benchmarks/blame.py --work DIR",
        "",
        f"{len(results)} pairs, {seconds / 60:.1f} minutes of processor time{made}: OLMoE with "
        f"{planting.LAYERS} layers and {planting.EXPERTS} experts, top 2. Units are ranked on "
        f"{NUM_RANK} items and judged on {NUM_HELD} others; seconds are the ranking's processor "
        "time.",
        "",
        *tables.method_table(results),
        *tables.pair_table(results, names),
        "### Can a harmful part be taken back while the gain is kept?",
        "",
        "The donor lost old facts. Some of its experts are put back to the host's; both shares are "
        "of nats on items that the ranking has not seen.",
        "",
        *tables.harm_table(harms),
    ]


def write_named(arguments: argparse.Namespace) -> list[str]:
    conditions = arguments.conditions.split(",")
    host = Host.load(arguments.host, {"donor": arguments.donor}, device="cpu", dtype="float32")
    stem = f"{arguments.host}-{arguments.donor}".replace("/", "_").replace(":", "_")
    results, names = [], []
    for condition in conditions:
        path = arguments.work / f"named-{stem}-{condition.replace('/', '-')}.json"
        found = kept_result(path, lambda c=condition: named_pair(host, c, arguments))
        results += [found[grain] for grain in TOP]
        names += [condition] * len(TOP)
    worse = Host.load(arguments.donor, {"donor": arguments.host}, device="cpu", dtype="float32")
    gains = {name: r["gain"] for name, r in zip(names, results, strict=True)}
    best = max(gains, key=lambda name: gains[name])
    harms = {}
    for condition, gain in gains.items():
        if gain < 0 < gains[best]:
            path = arguments.work / f"harm-{stem}-{condition.replace('/', '-')}.json"
            harms[f"{condition} restored, {best} kept"] = kept_result(
                path, lambda c=condition: named_harm(worse, best, c, arguments)
            )
    return [
        f"## {arguments.host} to {arguments.donor}",
        "",
        f"    python benchmarks/blame.py --work DIR --pairs 0 --host {arguments.host} "
        f"--donor {arguments.donor} --conditions {arguments.conditions}",
        "",
        f"Units are ranked on {arguments.items} items and judged on {arguments.held} others. Where "
        "the donor is worse (negative gain), a share of it says how much of the loss the top units "
        "bring along.\n",
        *tables.condition_tables(results, names),
        "### All conditions\n",
        *tables.pair_table(results, names),
        *(["### Loss restored, gain kept", "", *tables.harm_table(harms)] if harms else []),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="results of pairs, to resume")
    parser.add_argument("--pairs", type=int, default=14, help="how many planted pairs")
    parser.add_argument("--host")
    parser.add_argument("--donor")
    parser.add_argument("--conditions", default="nano_math/cot,nano_reading/0-shot")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--items", type=int, default=NUM_RANK)
    parser.add_argument("--held", type=int, default=NUM_HELD)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    parts = ["# Ranking the units that carry a difference", "", *tables.surroundings()]
    if arguments.pairs:
        parts += write_planted(arguments)
    if arguments.host and arguments.donor:
        parts += write_named(arguments)
    text = "\n".join(parts).rstrip() + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
