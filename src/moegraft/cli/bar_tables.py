"""What the commands of `moegraft bar` print."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

Content = Mapping[str, Any]


def show_branch(console: Console, plan: Any) -> None:
    """Print what a branch is made of."""
    recipe = plan.recipe
    _say(console, f"anchor   {recipe.anchor} ({plan.anchor.family.name})")
    _say(console, f"branch   {plan.family.name} for domain {recipe.domain!r}")
    if plan.anchor.num_experts:
        old = plan.anchor.num_experts
        start = f"reaching for {recipe.toward}" if recipe.toward else "reached by no token yet"
        _say(console, f"experts  {old} of the host, frozen; {recipe.experts} appended, {start}")
    else:
        start = "the anchor's FFN" if plan.starts_equal else f"the FFN of {recipe.pretrained}"
        _say(
            console,
            f"experts  0: the anchor's FFN, frozen; 1: from {start}; {recipe.router} router",
        )
    if plan.tokens is not None:
        noise = f"with noise {plan.tokens.noise:g} sd" if plan.tokens.noise else "without noise"
        named = ", ".join(f"{token} = {index}" for token, index in plan.tokens.ids.items())
        _say(console, f"tokens   {named}; rows at the mean row, {noise}")


def show_merge(console: Console, plan: Any) -> None:
    """Print what a merge is made of."""
    kind = plan.family.name if plan.is_dense else f"{plan.family.name}, {plan.num_experts} experts"
    _say(console, f"anchor   {plan.recipe.anchor}")
    _say(console, f"merged   {kind} by method {plan.recipe.method!r}")
    for index, part in enumerate(plan.parts, 1):
        what = f"mean of FFNs with {part.name}" if plan.is_dense else f"expert {index}: {part.name}"
        _say(console, f"         {what} ({part.source})")
    _say(console, f"shared   {plan.policy('')}")
    if plan.tokens is not None:
        named = ", ".join(f"{token} = {index}" for token, index in plan.tokens.ids.items())
        _say(console, f"tokens   {named}")


def show_divergence(console: Console, moved: Mapping[str, Mapping[str, float]]) -> None:
    """Print how far each branch's shared tensors are from the anchor's, by component."""
    names = list(next(iter(moved.values())))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("largest relative distance from the anchor")
    for name in names:
        table.add_column(escape(name), justify="right")
    for component, own in moved.items():
        cells = ("equal" if own[name] == 0 else f"{own[name]:.2g}" for name in names)
        table.add_row(component, *cells)
    console.print(table)


def show_costs(console: Console, costs: Content) -> None:
    """Print what host, branch and merged model cost to hold and to serve."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("model")
    for name in ("experts", "parameters", "active", "GFLOPs/token", "weights"):
        table.add_column(name, justify="right", no_wrap=True)
    names = {
        "host": "host",
        "branch": "one branch",
        "merged": f"merged, {costs['domains']} domains",
    }
    for key, name in names.items():
        cost = costs[key]
        table.add_row(
            name,
            str(costs["num_experts"][key]),
            f"{cost['total']:,}",
            f"{cost['active']:,}",
            f"{cost['flops_per_token'] / 1e9:.4g}",
            decimal(cost["nbytes"]),
        )
    console.print(table)
    against = costs["against_host"]
    _say(
        console,
        f"merged against host: {against['total']:.2f} x parameters, {against['active']:.2f} x "
        f"active, {against['flops_per_token']:.2f} x FLOPs per token",
    )
    for line in costs["assumed"]:
        _say(console, f"assumed: {line}")


def distance_line(found: Content, *, expected_equal: bool) -> str:
    """One sentence about how far a branch is from its anchor."""
    measured = (
        f"largest difference of a logit {found['max_difference']:.2g}, KL {found['kl']:.2g} nats, "
        f"same first choice for {found['same_first']:.1%} of {found['num_tokens']} tokens"
    )
    if found["identical"]:
        return "distance from the anchor: none, all logits are bit-identical"
    if found["within_tolerance"]:
        return f"distance from the anchor: rounding only ({measured})"
    note = "; expected none, so do not train this branch" if expected_equal else ""
    return f"distance from the anchor: {measured}{note}"


def _say(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)
