"""What a merged model has cost, stage by stage, against retraining one model on everything.

Growing to n domains one at a time, retraining processes the first domain n times, the second
n - 1 times and so on: about n (n + 1) / 2 domain trainings. BAR trains each domain once, but a
branch holds two FFNs, a router is trained after every merge on a share of all domains, and the
merged model runs all its experts. All of that is counted here from the records of what was run;
what is not recorded is assumed, and every assumption is listed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moegraft.bar.cost import ASSUMED, Sizes, sizes_of
from moegraft.bar.record import MergeRecord, read_record, source_of
from moegraft.checkpoint import open_checkpoint
from moegraft.errors import BranchError, RecipeError


@dataclass(frozen=True, slots=True)
class Entry:
    """One stage that was run."""

    domain: str
    stage: str
    tokens: int
    flops: float
    device_hours: float | None
    """Seconds times devices; None where no time was recorded."""


def count_costs(merged: str | Path, *, router_share: float = 0.05) -> dict[str, Any]:
    """Count what the merged model in `merged` has cost, and what retraining would have.

    Args:
        merged: a folder that `bar merge` or `bar route` made.
        router_share: share of all domains' tokens that a router training reads, where none is
            recorded.

    Returns:
        JSON-ready: `entries`, one per stage that was run; `growth`, one row per number of
        domains with the cumulative FLOPs of BAR and of retraining; `update`, the FLOPs of
        updating each domain; `serving`; `assumed`, one sentence each.

    Raises:
        BranchError: no record, no stage in it, or the anchor is not found.
        RecipeError: `router_share` is no share.
    """
    if not 0 < router_share <= 1:
        raise RecipeError(f"router_share: expected above 0 and up to 1, got {router_share}")
    record = read_record(merged)
    anchor = open_checkpoint(source_of(record.anchor, merged))
    sizes = sizes_of(anchor)
    entries = [
        _entry(sizes, expert["domain"], stage, _count(record, expert))
        for expert in record.experts
        for stage in expert["stages"]
    ]
    if not entries:
        raise BranchError(f"{merged}: no stage is recorded for any of its branches")
    routers = [_router_entry(stage) for stage in record.stages]
    assumed = [*_ASSUMED, *_missing(record, entries)]
    everything = sum(entry.tokens for entry in entries)
    router_tokens = float(routers[-1].tokens) if routers else 2 * router_share * everything
    if not routers:
        assumed.append(f"no router training is recorded: {router_share:.0%} of all tokens, twice")
    growth = _growth(sizes, record, entries, router_tokens)
    return {
        "domains": list(record.domains),
        "entries": [asdict(entry) for entry in (*entries, *routers)],
        "spent": _totals([*entries, *routers]),
        "growth": growth,
        "update": _updates(record, entries, growth[-1]),
        "serving": _serving(sizes, record),
        "assumed": assumed,
    }


_ASSUMED = (
    *ASSUMED[:1],
    "a training step costs 3 forward passes where all weights train; a branch skips the gradient "
    "of frozen weights other than experts, which come with the domain's, and runs both FFNs "
    "forward and back",
    "reinforcement learning: tokens are those of the completions that were learnt from; sampling "
    "them costs one forward pass more",
    "retraining: a dense model of the anchor's size, all weights trained, on the tokens of all "
    "domains so far, whenever one is added; the general mix, which every branch repeats, is "
    "counted once a retraining",
    "growing: the router is trained after every added domain, on a share of all domains so far "
    "with all experts running",
)


def _count(record: MergeRecord, expert: Mapping[str, Any]) -> int:
    return 1 if record.method == "bar" else len(expert["experts"])


def _hours(stage: Mapping[str, Any]) -> float | None:
    seconds = stage.get("seconds")
    return None if seconds is None else float(seconds) * int(stage.get("devices", 1)) / 3600


def _entry(sizes: Sizes, domain: str, stage: Mapping[str, Any], appended: int) -> Entry:
    tokens = int(stage.get("tokens") or 0)
    flops = float(stage.get("flops") or _branch_flops(sizes, stage, appended) * tokens)
    return Entry(domain, str(stage["stage"]), tokens, flops, _hours(stage))


def _router_entry(stage: Mapping[str, Any]) -> Entry:
    flops = float(stage.get("flops") or 0)
    return Entry("all", str(stage["stage"]), int(stage["tokens"]), flops, _hours(stage))


def _branch_flops(sizes: Sizes, stage: Mapping[str, Any], appended: int) -> int:
    """Per token of training: forward, back through the activations, and weights' gradients.

    An expert shares a fused parameter with the frozen ones (low-rank factors stand before it), so
    the gradient of every active expert is computed, and that of frozen ones thrown away.
    """
    base = max(1, sizes.num_experts)
    active = base + appended if sizes.num_experts == 0 else sizes.top_k
    forward = sizes.cost(base + appended, active).flops_per_token
    own = sizes.expert * appended
    trained = int(stage.get("trained_numbers") or own)
    others = trained if stage.get("lora") else max(0, trained - own)
    sampling = forward if stage["stage"] == "rl" else 0
    return 2 * forward + min(2 * (others + active * sizes.expert), forward) + sampling


def _dense_flops(sizes: Sizes, stage: Mapping[str, Any]) -> int:
    base = max(1, sizes.num_experts)
    forward = sizes.cost(base, base if sizes.num_experts == 0 else sizes.top_k).flops_per_token
    return (4 if stage["stage"] == "rl" else 3) * forward


@dataclass(frozen=True, slots=True)
class _Dense:
    """What a dense model would spend on the data of one branch, in FLOPs."""

    domain: float
    """On the domain's own data."""
    general: float
    """On the general mix beside it."""
    tokens: int
    """Of both."""


def _dense_costs(sizes: Sizes, record: MergeRecord) -> dict[str, _Dense]:
    found = {}
    for expert in record.experts:
        own = general = 0.0
        count = 0
        for stage in expert["stages"]:
            tokens, share = int(stage.get("tokens") or 0), _general_share(stage)
            flops = _dense_flops(sizes, stage) * tokens
            own, general, count = own + flops * (1 - share), general + flops * share, count + tokens
        found[expert["domain"]] = _Dense(own, general, count)
    return found


def _general_share(stage: Mapping[str, Any]) -> float:
    """Share of a stage's tokens that are the general mix's: as it was set, or by size."""
    if stage.get("general_share") is not None:
        return float(stage["general_share"])
    data = stage.get("data")
    if not isinstance(data, Sequence) or isinstance(data, str):
        return 0.0
    parts: dict[str, float] = {}
    for part in data:
        size = part.get("tokens", part.get("records")) if isinstance(part, Mapping) else None
        if size is not None:
            name = str(part.get("part"))
            parts[name] = parts.get(name, 0) + float(size)
    total = sum(parts.values())
    return parts.get("general", 0.0) / total if total else 0.0


def _growth(
    sizes: Sizes,
    record: MergeRecord,
    entries: Sequence[Entry],
    router_tokens: float,
) -> list[dict[str, Any]]:
    """Cumulative FLOPs when domains come one after another, in the order of the experts.

    Args:
        sizes: of the anchor.
        record: of the merged model.
        entries: what was run for each domain.
        router_tokens: of a router training on all domains.
    """
    dense = _dense_costs(sizes, record)
    everything = sum(one.tokens for one in dense.values())
    branches = routers = retraining = 0.0
    rows, seen = [], []
    for place, domain in enumerate(record.domains, 1):
        seen.append(dense[domain])
        branches += sum(entry.flops for entry in entries if entry.domain == domain)
        share = sum(one.tokens for one in seen) / max(1, everything)
        last_router = 2 * _merged_cost(sizes, record, place).flops_per_token * router_tokens * share
        routers += last_router
        last = sum(one.domain for one in seen) + max(one.general for one in seen)
        retraining += last
        rows.append(
            {
                "domains": place,
                "added": domain,
                "bar": branches + routers,
                "bar_branches": branches,
                "bar_routers": routers,
                "last_router": last_router,
                "retraining": retraining,
                "last_retraining": last,
            }
        )
    return rows


def _merged_cost(sizes: Sizes, record: MergeRecord, domains: int) -> Any:
    appended = sum(_count(record, expert) for expert in record.experts[:domains])
    base = max(1, sizes.num_experts)
    total = base + appended
    return sizes.cost(total, total if sizes.num_experts == 0 else sizes.top_k)


def _updates(
    record: MergeRecord, entries: Sequence[Entry], last: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What updating each domain costs once all are there."""
    return [
        {
            "domain": domain,
            "bar": sum(e.flops for e in entries if e.domain == domain) + last["last_router"],
            "retraining": last["last_retraining"],
        }
        for domain in record.domains
    ]


def _serving(sizes: Sizes, record: MergeRecord) -> dict[str, Any]:
    base = max(1, sizes.num_experts)
    host = sizes.cost(base, base if sizes.num_experts == 0 else sizes.top_k)
    merged = _merged_cost(sizes, record, len(record.experts))
    extra = merged.flops_per_token - host.flops_per_token
    return {"host": asdict(host), "merged": asdict(merged), "extra_flops_per_token": extra}


def _totals(entries: Sequence[Entry]) -> dict[str, Any]:
    timed = [entry.device_hours for entry in entries if entry.device_hours is not None]
    return {
        "tokens": sum(entry.tokens for entry in entries),
        "flops": sum(entry.flops for entry in entries),
        "device_hours": sum(timed) if timed else None,
        "untimed_stages": len(entries) - len(timed),
    }


def _missing(record: MergeRecord, entries: Sequence[Entry]) -> list[str]:
    found = [
        f"{expert['domain']!r} records no stage and counts as nothing"
        for expert in record.experts
        if not expert["stages"]
    ]
    found += [
        f"stage {entry.stage!r} of {entry.domain!r} records no tokens and counts as nothing"
        for entry in entries
        if not entry.tokens
    ]
    return found
