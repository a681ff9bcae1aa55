"""How `diagnose` and `profile` look in a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moegraft.cli.wide_table import print_note
from moegraft.report.tables import fold_label

Content = Mapping[str, Any]

_MAX_DOMAINS = 8
_MAX_DEAD = 12
_WIDE = 100
"""Columns of a terminal in which names of configurations need not be folded."""


def show_profile(console: Console, found: Content) -> None:
    """Print what `profile` writes: a row per layer, a column per domain."""
    name = found["checkpoint"]
    if found["donor"]:
        name += f" with {found['configuration']} of {found['donor']}"
    console.print(f"[bold]{escape(name)}[/]", soft_wrap=True)
    tokens = ", ".join(
        f"{domain} {count:,}"
        for domain, count in zip(found["domains"], found["num_tokens"], strict=True)
    )
    print_note(console, f"{found['num_experts']} experts, top-{found['top_k']}; tokens: {tokens}")
    shown = found["domains"][:_MAX_DOMAINS]
    table = Table(box=SIMPLE_HEAD, title="How evenly experts are loaded (1 = all alike)")
    table.add_column("layer", justify="right")
    for domain in shown:
        table.add_column(escape(domain), justify="right")
    for column in ("all domains", "undecided", "between domains", "dead"):
        table.add_column(column, justify="right")
    for place, layer in enumerate(found["layers"]):
        table.add_row(str(layer), *_profile_row(found, place, len(shown)))
    console.print(table)
    print_note(console, "undecided: mean entropy of the router's distribution over ln(experts).")
    print_note(
        console, "between domains: what the choice of an expert tells about the domain, in bits."
    )
    if len(found["domains"]) > len(shown):
        print_note(
            console, f"{len(found['domains']) - len(shown)} more domains with --json or --out."
        )
    print_note(console, _dead_line(found))


def _profile_row(found: Content, place: int, num_shown: int) -> Iterator[str]:
    load = np.array(found["load_entropy"])[:, place]
    yield from (f"{value:.3f}" for value in load[:num_shown])
    shares = np.array(found["frequency"])[:, place].mean(axis=0) / found["top_k"]
    used = shares[shares > 0]
    yield f"{-(used * np.log(used)).sum() / np.log(max(len(shares), 2)):.3f}"
    yield f"{np.array(found['token_entropy'])[:, place].mean():.3f}"
    yield f"{found['specialisation'][place]:.3f}"
    yield str(sum(layer == found["layers"][place] for layer, _ in found["dead"]))


def _dead_line(found: Content) -> str:
    total = sum(found["num_tokens"])
    if not found["dead"]:
        return f"Every expert was chosen at least once in {total:,} tokens."
    some = [f"layer {layer} expert {expert}" for layer, expert in found["dead"][:_MAX_DEAD]]
    more = " and more" if len(found["dead"]) > len(some) else ""
    return f"Never chosen in {total:,} tokens: {', '.join(some)}{more}."


def show_diagnosis(console: Console, found: Content) -> None:
    """Print what `diagnose` writes: agreement, its cause by layer, the 2 x 2, and sentences."""
    console.print(_agreement_table(found, narrow=console.width < _WIDE))
    console.print(_cause_table(found))
    if found["coadaptation"]:
        for table in _pairing_tables(found["coadaptation"]):
            console.print(table)
    for sentence in (*found["sentences"], *found["notes"]):
        print_note(console, sentence)


def _agreement_table(found: Content, *, narrow: bool) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        title="Agreement with the parents (routing: mean over layers; drift: behind the last)",
    )
    table.add_column("configuration", no_wrap=True)
    for title in ("same experts", "JSD (bits)", "drift"):
        for parent in ("host", "donor"):
            table.add_column(f"{title}\n{parent}", justify="right")
    for name, parents in found["agreement"].items():
        cells = []
        for measure, last in (("overlap", False), ("divergence", False), ("distance", True)):
            for parent in ("host", "donor"):
                value = _mean(parents.get(parent, {}).get(measure), last=last)
                cells.append("-" if value is None else _number(measure, value))
        table.add_row(escape(fold_label(name, narrow)), *cells)
    return table


def _cause_table(found: Content) -> Table:
    """Why the parents choose other experts: other routers, or other hidden states."""
    table = Table(
        box=SIMPLE_HEAD, title="Chosen experts that the parents have in common, and what differs"
    )
    columns = ("layer", "both", "routers only", "hidden states only")
    for column in columns:
        table.add_column(column, justify="right")
    both = _by_layer(found["agreement"]["host"]["donor"]["overlap"])
    causes = [_by_layer(found["routers"][cause]["overlap"]) for cause in ("weights", "hidden")]
    for layer, *values in zip(found["layers"], both, *causes, strict=True):
        table.add_row(str(layer), *(_number("overlap", value) for value in values))
    means = [_number("overlap", float(np.mean(values))) for values in (both, *causes)]
    table.add_row("mean", *means, style="bold")
    return table


def _pairing_tables(entries: Sequence[Content]) -> Iterator[Table]:
    """The 2 x 2 of routers and experts, and what it says; each fits 80 columns."""
    losses = Table(
        box=SIMPLE_HEAD,
        title="Loss in nats per token (columns: router + experts, H the host's, D the donor's)",
    )
    losses.add_column("condition")
    for title in ("texts", "H + H", "D + H", "H + D", "D + D"):
        losses.add_column(title, justify="right")
    effects = Table(box=SIMPLE_HEAD, title="What the donor's router changes, and a mismatch costs")
    effects.add_column("condition")
    for title in ("on host's\nexperts", "on donor's\nexperts", "mismatch"):
        effects.add_column(title, justify="right")
    before = None
    for entry in entries:
        if entry["others"] != before:
            before = entry["others"]
            for table in (losses, effects):
                table.add_section()
                table.add_row(f"all else: {before}", style="dim")
        style = "bold" if entry["condition"] == "all" else ""
        cells = [f"{cell['loss']:.3f}" for cell in entry["cells"]]
        named = escape(entry["condition"])
        losses.add_row(named, str(entry["num_texts"]), *cells, style=style)
        names = ("router_on_host_experts", "router_on_donor_experts", "mismatch")
        effects.add_row(named, *(_effect(entry[name]) for name in names), style=style)
    yield losses
    yield effects


def _effect(contrast: Content) -> str:
    low, high = contrast["interval"]
    return escape(f"{contrast['value']:+z.3f}\n[{low:z.3f}, {high:z.3f}]")


def _number(measure: str, value: float) -> str:
    return f"{value:.1%}" if measure == "overlap" else f"{value:.3f}"


def _by_layer(rows: Sequence[Sequence[float]]) -> list[float]:
    return np.array(rows).mean(axis=0).tolist()


def _mean(rows: Sequence[Sequence[float]] | None, *, last: bool) -> float | None:
    if rows is None:
        return None
    layers = _by_layer(rows)
    return layers[-1] if last else float(np.mean(layers))
