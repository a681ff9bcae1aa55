"""How `inspect`, `diff` and `transfer` look in a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from moegraft.transfer.diff import Comparison, Distance
from moegraft.transfer.plan import Plan
from moegraft.transfer.recipe import HOST

_BARS = "▁▂▃▄▅▆▇█"


def show_summary(console: Console, found: Mapping[str, Any]) -> None:
    """Print what `summarize_checkpoint` returns."""
    console.print(f"[bold]{escape(found['source'])}[/]", soft_wrap=True)
    moe = f", {found['num_experts']} experts, top-{found['top_k']}" if found["num_experts"] else ""
    tied = ", tied embeddings" if found["tied_embeddings"] else ""
    files = len(found["files"])
    _say(console, f"{found['family']}, {found['layout']}, {found['num_layers']} layers{moe}{tied}")
    _say(
        console,
        f"{found['tensors']:,} tensors, {decimal(found['bytes'])} in {files} file{_s(files)}",
    )
    _say(console, _tokenizer_line(found["tokenizer"]))
    if found["revision"]:
        _say(console, f"revision {found['revision']}")
    table = _table("component", "layers", tensors=1, parameters=1, size=1, share=1)
    table.add_column("dtypes")
    for row in found["components"]:
        table.add_row(
            row["component"],
            row["layers"] or "-",
            f"{row['tensors']:,}",
            f"{row['parameters']:,}",
            decimal(row["bytes"]),
            f"{row['bytes'] / max(1, found['bytes']):.1%}",
            " ".join(row["dtypes"]),
        )
    console.print(table)
    _list(console, "fits no pattern, stays the host's", found["unknown"])


def show_plan(console: Console, plan: Plan) -> None:
    """Print a plan: what comes from where, what is left, and what to be careful about."""
    console.print(f"[bold]{HOST}[/]  {escape(plan.host.source)}", soft_wrap=True)
    for name, donor in plan.donors.items():
        console.print(f"[bold]{escape(name)}[/]  {escape(donor.source)}", soft_wrap=True)
    table = _table("component", "from", "layers", "experts", tensors=1, size=1)
    for row in plan.accounts:
        style = "dim" if row.source == HOST else ""
        cells = (row.component, row.source, row.layers or "-", row.experts or "-")
        table.add_row(*map(escape, cells), f"{row.num_tensors:,}", decimal(row.nbytes), style=style)
    console.print(table)
    files = len(plan.host.files)
    exact = "byte-exact" if plan.copies_everything else "mixes or casts, not byte-exact"
    _say(
        console,
        f"{len(plan.host.tensors):,} tensors, {decimal(plan.nbytes)} in {files} file{_s(files)}, "
        f"{plan.num_ranges:,} byte ranges, {plan.host.layout} layout, {exact}",
    )
    if any(s.component == "attention" for s in plan.moves):
        moved = "with attention" if plan.recipe.qk_norm == "attention" else "only when selected"
        if any(key.component == "qk_norm" for key in plan.host.pieces()):
            _say(console, f"q/k norms move {moved}")
    for name in plan.donors:
        unused = plan.unused(name)
        listed = ", ".join(f"{count:,} {component}" for component, count in unused.items())
        _say(console, f"not used of {name}: {listed or 'nothing, every tensor moves'}")
    _list(console, "fits no pattern, stays the host's", plan.host.unknown)
    for warning in plan.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def show_comparison(console: Console, found: Comparison, *, layers: bool) -> None:
    """Print a comparison: whether the two fit, and the distances."""
    console.print(f"[bold]{HOST}[/]   {escape(found.host)}", soft_wrap=True)
    console.print(f"[bold]donor[/]  {escape(found.donor)}", soft_wrap=True)
    if found.families[0] != found.families[1]:
        ours, theirs = found.families
        console.print(f"[red]families differ:[/] {ours} and {theirs}; nothing can move")
    for row in found.configs:
        mark = "[red]must agree:[/]" if row["must_agree"] else "[yellow]differs:[/]"
        values = f"{row['field']}: host {row['host']}, donor {row['donor']}"
        console.print(f"{mark} {escape(values)}", soft_wrap=True)
    for sentence in found.tokenizers:
        console.print(f"[yellow]tokenizer:[/] {escape(sentence)}", soft_wrap=True)
    if not found.configs and not found.tokenizers and found.families[0] == found.families[1]:
        console.print("[green]config and tokenizer agree[/]")
    for what, pair in (("layout", found.layouts), ("dtypes", found.dtypes)):
        if pair[0] != pair[1]:
            ours, theirs = (x if isinstance(x, str) else " ".join(x) for x in pair)
            _say(console, f"{what}: host {ours}, donor {theirs}")
    _list(console, "only the host has", found.only_host)
    _list(console, "only the donor has", found.only_donor)
    if found.totals:
        console.print(_distances(found.totals, found.distances))
    if layers:
        console.print(_distances(found.distances, ()))


def _distances(rows: Sequence[Distance], by_layer: Sequence[Distance]) -> Table:
    table = _table("component", *([] if by_layer else ["layer"]))
    for name in ("distance", "cosine", "identical"):
        table.add_column(name, justify="right", no_wrap=True)
    if by_layer:
        table.add_column("distance by layer", overflow="fold")
    for row in rows:
        cells = [row.component] if by_layer else [row.component, _number(row.layer, "d")]
        cells += [_number(row.relative, ".4g"), _number(row.cosine, ".6f")]
        cells.append(f"{row.num_identical:,}/{row.num_pieces:,}")
        if by_layer:
            mine = [
                d.relative for d in by_layer if d.component == row.component and d.layer is not None
            ]
            cells.append(_spark(mine) if len(mine) > 1 else "")
        table.add_row(*cells)
    return table


def _spark(values: Sequence[float | None]) -> str:
    top = max((value for value in values if value is not None), default=0.0)
    scaled = (None if v is None else round(v / top * 7) if top else 0 for v in values)
    return "".join("?" if index is None else _BARS[index] for index in scaled)


def _number(value: float | int | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _tokenizer_line(tokenizer: Mapping[str, Any]) -> str:
    if not tokenizer["files"]:
        return "no tokenizer"
    count = "" if tokenizer["tokens"] is None else f", {tokenizer['tokens']:,} tokens"
    template = "chat template" if tokenizer["chat_template_sha256"] else "no chat template"
    return f"tokenizer: {tokenizer['kind'] or 'without tokenizer.json'}{count}, {template}"


def _table(*names: str, **numbers: int) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _list(console: Console, title: str, names: Iterable[str]) -> None:
    found = list(names)
    if found:
        more = f" and {len(found) - 5:,} more" if len(found) > 5 else ""
        _say(console, f"{title}: {', '.join(found[:5])}{more}")


def _say(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False)


def _s(count: int) -> str:
    return "" if count == 1 else "s"
