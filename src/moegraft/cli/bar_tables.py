"""What the commands of `moegraft bar` print."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

Content = Mapping[str, Any]

_MANY_ALIKE = 0.5
"""Share of groups without a difference to learn from, above which a reader is told what to do."""


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


def show_losses(console: Console, rows: Sequence[tuple[str, Mapping[str, float]]]) -> None:
    """Print held-out losses, a line per state of the model and a column per domain."""
    names = list(rows[0][1])
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("held-out loss (nats/token)")
    for name in (*names, "mean"):
        table.add_column(escape(name), justify="right")
    for what, losses in rows:
        values = [losses[name] for name in names]
        mean = sum(values) / len(values)
        table.add_row(what, *(f"{value:.4f}" for value in (*values, mean)))
    console.print(table)


def show_routing(console: Console, profile: Content, title: str) -> None:
    """Print the mean weight of each expert by domain, over all layers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column(title)
    for expert in range(profile["num_experts"]):
        table.add_column(str(expert), justify="right")
    for name, layers in zip(profile["domains"], profile["routing_mass"], strict=True):
        means = [sum(column) / len(layers) for column in zip(*layers, strict=True)]
        table.add_row(escape(name), *(f"{value:.3f}" for value in means))
    console.print(table)


def show_ledger(console: Console, found: Content) -> None:
    """Print what was spent, what growing and updating cost, and what was assumed."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in ("domain", "stage"):
        table.add_column(name)
    for name in ("tokens", "FLOPs", "device hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in found["entries"]:
        hours = entry["device_hours"]
        timed = "not recorded" if hours is None else f"{hours:.3g}"
        cells = (f"{entry['tokens']:,}", f"{entry['flops']:.3g}", timed)
        table.add_row(escape(entry["domain"]), escape(entry["stage"]), *cells)
    console.print(table)
    growth = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    growth.add_column("growing to")
    for name in ("branches", "routers", "BAR in all", "retraining", "ratio"):
        growth.add_column(name, justify="right", no_wrap=True)
    for row in found["growth"]:
        numbers = (row["bar_branches"], row["bar_routers"], row["bar"], row["retraining"])
        ratio = f"{row['bar'] / row['retraining']:.2f}" if row["retraining"] else "-"
        growth.add_row(_counted(row["domains"], "domain"), *(f"{n:.3g}" for n in numbers), ratio)
    console.print(growth)
    for row in found["update"]:
        told = (
            f"updating {row['domain']}: {row['bar']:.3g} FLOPs, retraining {row['retraining']:.3g}"
        )
        _say(console, told)
    host, merged = found["serving"]["host"], found["serving"]["merged"]
    ratio = merged["flops_per_token"] / host["flops_per_token"]
    _say(
        console, f"serving: {ratio:.2f} x the anchor's FLOPs per token, for every token from now on"
    )
    for line in found["assumed"]:
        _say(console, f"assumed: {line}")


def show_costs(console: Console, costs: Content) -> None:
    """Print what host, branch and merged model cost to hold and to serve."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("model")
    for name in ("experts", "parameters", "active", "GFLOPs/token", "weights"):
        table.add_column(name, justify="right", no_wrap=True)
    names = {
        "host": "host",
        "branch": "one branch",
        "merged": f"merged, {_counted(costs['domains'], 'domain')}",
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


def _counted(number: int | float, what: str) -> str:
    shown = f"{number:,}" if isinstance(number, int) else f"{number:,g}"
    return f"{shown} {what}{'s' * (number != 1)}"


def _say(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)


def show_stages(console: Console, plan: list[dict[str, Any]]) -> None:
    """Print what each stage opens and how it trains."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("opens", min_width=len("vocabulary,"))
    for name in ("numbers open", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("length", "rate"):
        table.add_column(name, justify="right")
    for row in plan:
        told = [_counted(row[k], k[:-1]) for k in ("steps", "tokens", "epochs") if k in row]
        low = f", rank {row['lora']}" if row["lora"] else ""
        table.add_row(
            row["stage"],
            f"{row['opens']}{low}",
            f"{row['open']:,}",
            f"{row['open'] / row['of']:.1%}",
            ", ".join(told),
            f"{row['learning_rate']:g} {row['scheduler']}",
        )
    console.print(table)
    for row in plan:
        if "reach" in row:
            _say(console, _reach_line(row["stage"], **row["reach"]))


def _reach_line(stage: str, balance_loss: float | None, epsilon: float | None) -> str:
    """What a stage does so that tokens reach an appended expert that starts silent."""
    if not balance_loss:
        return f"{stage}: nothing here brings tokens to the appended experts, which start silent"
    return (
        f"{stage}: a balance loss of {balance_loss:g} and Adam's epsilon at {epsilon or 1e-8:g} "
        f"bring tokens to the appended experts (--set {stage}.balance_loss=0 to do without)"
    )


def show_trained(console: Console, stages: Any) -> None:
    """Print what the stages of a branch cost and where they ended."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("stage")
    for name in ("steps", "tokens", "seconds", "loss", "reward"):
        table.add_column(name, justify="right")
    for stage in stages:
        metrics = stage.get("metrics", {})
        cells = [f"{stage[k]:,.0f}" if k in stage else "" for k in ("steps", "tokens", "seconds")]
        loss = f"{metrics['loss']:.4f}" if "loss" in metrics else ""
        reward = f"{stage['reward']:.3f}" if "reward" in stage else ""
        table.add_row(str(stage["stage"]), *cells, loss, reward)
    console.print(table)
    for stage in stages:
        if "reached" in stage:
            _say(console, _reached_line(stage["stage"], **stage["reached"]))
        if "groups_alike" in stage:
            _say(console, _reward_line(stage))


def _reward_line(stage: Mapping[str, Any]) -> str:
    """Whether the rewards have risen, and how many of the completions could teach anything."""
    alike = stage["groups_alike"]
    hint = "; choose tasks that are solved at times" if alike > _MANY_ALIKE else ""
    return (
        f"{stage['stage']}: mean reward {stage['reward_at_first']:.3f} in the first tenth, "
        f"{stage['reward']:.3f} in the last; in {alike:.0%} of the groups all completions earned "
        f"the same, which teaches nothing{hint}"
    )


def _reached_line(stage: str, before: Sequence[float], after: Sequence[float]) -> str:
    """How many tokens the appended experts get in each layer."""
    told = ", ".join(f"{old:.0%} -> {new:.0%}" for old, new in zip(before, after, strict=True))
    silent = sum(not share for share in after)
    note = f"; in {silent} layers none do, so train longer or at a higher rate" if silent else ""
    return f"{stage}: domain tokens that reach the appended experts, by layer: {told}{note}"


def show_verified(console: Console, folder: Any, found: Any) -> None:
    """Print that a branch is sound, and what its training opened."""
    stages = ", ".join(found.stages) or "none recorded"
    _say(console, f"{folder}: branch for {found.domain!r}, {found.layout} layout")
    _say(console, f"frozen   {found.num_frozen:,} tensors, every byte as the branch was made")
    _say(console, f"moved    {len(found.moved):,} shared tensors ({found.opened})")
    _say(console, f"stages   {stages}")
    if found.untrained:
        _say(console, "warning: the domain expert has not moved since the branch was made")
