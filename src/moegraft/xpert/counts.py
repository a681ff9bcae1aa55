"""Routing counts by domain, layer and expert: measured here, or read from somebody's file."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from moegraft.errors import EvalDataError

Layer = int | str
"""A layer's number, or a name such as `first` where a file has no numbers."""
_LAYER = (int, str, type(None))
_KIND = "expert_counts"
_TOP1 = "expert_counts_top1"
_MANY_EXPERTS, _MANY_TOKENS = 2**16, 2**50
"""More than any model has, or was ever measured on."""


@dataclass(frozen=True, slots=True)
class Windows:
    """The counts of one domain apart, by text window."""

    num_tokens: Int[np.ndarray, "window"]
    counts: Int[np.ndarray, "window layer expert"]
    mass: Float[np.ndarray, "window layer expert"]


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """How many tokens of each domain were sent to each expert."""

    source: str
    """The checkpoint or model that was counted."""
    domains: tuple[str, ...]
    layers: tuple[Layer, ...]
    """Layers that were counted; dense layers have no experts and are not among them."""
    top_k: int
    num_tokens: Int[np.ndarray, "domain"]
    counts: Int[np.ndarray, "domain layer expert"]
    mass: Float[np.ndarray, "domain layer expert"] | None = None
    """Sums of routing weights, where they were measured."""
    windows: tuple[Windows, ...] = ()
    """One per domain, where windows were counted apart."""
    fingerprint: str | None = None
    """Of the checkpoint (`experts.donor_fingerprint`), where a checkpoint was at hand."""
    num_shared: int = 0
    """Shared experts beside the routed ones; every token passes through them."""

    @property
    def num_experts(self) -> int:
        """Routed experts per layer."""
        return self.counts.shape[2]

    @property
    def frequency(self) -> Float[np.ndarray, "domain layer expert"]:
        """Share of the domain's tokens sent to each expert; adds up to top_k."""
        return self.counts / self.num_tokens[:, None, None]


def read_counts(
    path: Path | str,
    *,
    model: str | None = None,
    domains: Sequence[str] = (),
    top_k: int | None = None,
) -> RoutingTable:
    """Read counts from a file; the base installation is enough.

    Three forms are known. `profile.json` of `moegraft profile`. `windows.jsonl` of `moegraft xpert
    identify`, with its windows. And JSON lines with one record per model, domain and layer:
    `{"model", "domain", "layer" (or "position"), "counts": {expert: tokens}}`, with `total` =
    top_k x tokens, as Ai2 measured OLMoE and Mixtral; experts that are not listed have 0. Records
    of kind `expert_counts_top1` (first choices) only tell how many experts serve a token.

    Args:
        path: of the file.
        model: which, where the file has several.
        domains: only these, in this order; default: all.
        top_k: experts per token, where the file does not tell.

    Raises:
        EvalDataError: the file cannot be read, contradicts itself, or is not what was asked for.
    """
    from moegraft.xpert.windows import is_window_file, read_windows

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EvalDataError(f"{path}: cannot be read: {error}") from None
    whole = _parsed(text)
    if is_window_file(text):
        table = read_windows(path, text)
    elif isinstance(whole, dict) and "domains" in whole:
        table = _from_profile(path, whole)
    else:
        table = _from_records(path, list(_records(path, text)), model, top_k)
    if model is not None and model != table.source:
        raise EvalDataError(f"{path}: no model {model!r}; there is: {table.source}")
    _check(table, str(path))
    return _only_domains(table, domains, str(path))


def _check(table: RoutingTable, where: str) -> None:
    """Raises EvalDataError when the numbers cannot be those of any model."""
    shape = (len(table.domains), len(table.layers))
    counts, mass, num_tokens = table.counts, table.mass, table.num_tokens
    fits = counts.shape[:2] == shape and counts.size > 0 and num_tokens.shape == shape[:1]
    if not fits or len({*table.domains}) < shape[0]:
        raise EvalDataError(
            f"{where}: expected counts of {shape[0]} different domains, {shape[1]} layers and some "
            f"experts, got the shape {list(counts.shape)}"
        )
    is_whole = (counts.sum(axis=2) == table.top_k * num_tokens[:, None]).all() and table.top_k > 0
    in_range = ((counts >= 0) & (counts <= num_tokens[:, None, None])).all()
    if not (is_whole and in_range and (num_tokens > 0).all()):
        raise EvalDataError(
            f"{where}: {table.source}: counts do not fit {table.top_k} experts per token; expected "
            "the same number of tokens in every layer of a domain, and no expert with more than "
            "that"
        )
    if mass is not None and not np.isfinite(mass).all():
        raise EvalDataError(f"{where}: routing mass that is no finite number")


def _only_domains(table: RoutingTable, domains: Sequence[str], where: str) -> RoutingTable:
    """The table of `domains` alone, in that order; of all if none are named."""
    if not domains or tuple(domains) == table.domains:
        return table
    missing = [name for name in domains if name not in table.domains]
    if len({*domains}) < len(domains):
        raise EvalDataError(f"--domain: {', '.join(domains)}: one of them is named twice")
    if missing:
        known = ", ".join(table.domains)
        raise EvalDataError(f"{where}: no domain {missing[0]!r}; there are: {known}")
    rows = [table.domains.index(name) for name in domains]
    return RoutingTable(
        source=table.source,
        domains=tuple(domains),
        layers=table.layers,
        top_k=table.top_k,
        num_tokens=table.num_tokens[rows],
        counts=table.counts[rows],
        mass=None if table.mass is None else table.mass[rows],
        windows=tuple(table.windows[row] for row in rows) if table.windows else (),
        fingerprint=table.fingerprint,
        num_shared=table.num_shared,
    )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _from_profile(path: Path, content: Mapping[str, Any]) -> RoutingTable:
    try:
        counts = np.array(content["counts"], dtype=np.int64)
        num_tokens = np.array(content["num_tokens"], dtype=np.int64)
        mass = np.array(content["routing_mass"], dtype=float) * num_tokens[:, None, None]
        if counts.ndim != 3 or mass.shape != counts.shape:
            raise ValueError(f"counts of the shape {counts.shape}, mass of {mass.shape}")
        return RoutingTable(
            source=str(content.get("checkpoint", path.stem)),
            domains=tuple(content["domains"]),
            layers=tuple(content["layers"]),
            top_k=int(content["top_k"]),
            num_tokens=num_tokens,
            counts=counts,
            mass=mass,
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise EvalDataError(
            f"{path}: expected profile.json of `moegraft profile`: {error!r}"
        ) from None


def _records(path: Path, text: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        record = _parsed(line)
        known = isinstance(record, dict) and isinstance(record.get("counts"), dict)
        is_named = isinstance(record, dict) and isinstance(record.get("layer"), _LAYER)
        if not (known and is_named and isinstance(record.get("domain"), str)):
            raise EvalDataError(
                f"{path}:{number}: expected a record with 'domain' and 'counts' (expert: tokens)"
            )
        total, counted = record.get("total"), _checked_sum(path, number, record["counts"])
        if total is not None and total != counted:
            raise EvalDataError(f"{path}:{number}: counts add up to {counted}, total says {total}")
        yield {"model": path.stem, "kind": _KIND, **record, "total": counted}


def _checked_sum(path: Path, number: int, counts: Mapping[str, Any]) -> int:
    for expert, count in counts.items():
        whole = isinstance(count, int) and not isinstance(count, bool) and 0 <= count < _MANY_TOKENS
        known = expert.isdecimal() and str(int(expert)) == expert and int(expert) < _MANY_EXPERTS
        if not (known and whole):
            raise EvalDataError(
                f"{path}:{number}: expert {expert!r}: {count!r}; expected a number of an expert "
                "and a count of tokens"
            )
    if not counts:
        raise EvalDataError(f"{path}:{number}: no expert has a count")
    return sum(counts.values())


def _from_records(
    path: Path,
    records: Sequence[Mapping[str, Any]],
    model: str | None,
    top_k: int | None,
) -> RoutingTable:
    models = tuple(dict.fromkeys(str(record["model"]) for record in records))
    if not models:
        raise EvalDataError(f"{path}: no counts in it")
    chosen = models[0] if model is None and len(models) == 1 else model
    if chosen is None or chosen not in models:
        asked = "several models" if chosen is None else f"no model {chosen!r}"
        raise EvalDataError(f"{path}: {asked}; choose with --model: {', '.join(models)}")
    own = [record for record in records if record["model"] == chosen]
    kept = [record for record in own if record["kind"] == _KIND]
    found = {(record["domain"], _layer(record)): record for record in kept}
    if not kept or len(found) != len(kept):
        problem = "several records of one domain and layer" if kept else f"no record of {_KIND}"
        raise EvalDataError(f"{path}: {chosen}: {problem}")
    names = tuple(dict.fromkeys(domain for domain, _ in found))
    layers = tuple(dict.fromkeys(layer for _, layer in found))
    missing = [(d, layer) for d in names for layer in layers if (d, layer) not in found]
    if missing:
        domain, layer = missing[0]
        raise EvalDataError(f"{path}: {chosen}: domain {domain!r} lacks layer {layer}")
    num_experts = 1 + max(int(expert) for record in kept for expert in record["counts"])
    counts = np.zeros((len(names), len(layers), num_experts), dtype=np.int64)
    for (domain, layer), record in found.items():
        for expert, count in record["counts"].items():
            counts[names.index(domain), layers.index(layer), int(expert)] = count
    serving = _find_top_k(path, chosen, own) if top_k is None else top_k
    if serving < 1:
        raise EvalDataError(f"{path}: {chosen}: {serving} experts per token; expected at least 1")
    return RoutingTable(
        source=chosen,
        domains=names,
        layers=layers,
        top_k=serving,
        num_tokens=counts[:, 0].sum(axis=1) // serving,
        counts=counts,
    )


def _layer(record: Mapping[str, Any]) -> Layer:
    layer = record.get("layer")
    return layer if layer is not None else str(record.get("position", "all"))


def _find_top_k(path: Path, model: str, records: Sequence[Mapping[str, Any]]) -> int:
    """From a record that says it, or by dividing the choices by the first choices."""
    said = {record["top_k"] for record in records if isinstance(record.get("top_k"), int)}
    if len(said) > 1:
        raise EvalDataError(f"{path}: {model}: records differ in top_k: {sorted(said)}")
    if said:
        return said.pop()
    first = {(r["domain"], _layer(r)): r["total"] for r in records if r["kind"] == _TOP1}
    for record in records:
        tokens = first.get((record["domain"], _layer(record)))
        if record["kind"] == _KIND and tokens and record["total"] % tokens == 0:
            return record["total"] // tokens
    raise EvalDataError(
        f"{path}: {model}: the file does not tell how many experts serve a token; say it with "
        "--top-k"
    )
