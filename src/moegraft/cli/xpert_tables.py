"""What `xpert identify` and `xpert decompose` print."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from moegraft.cli.wide_table import print_note, print_wide

Content = Mapping[str, Any]
_SMALL_NORM = 0.3


def show_identification(console: Console, found: Content) -> None:
    """The chosen experts of each layer with their use by every domain."""
    tokens = ", ".join(
        f"{name} {number:,}"
        for name, number in zip(found["domains"], found["num_tokens"])  # noqa: B905
    )
    chance = _percent(found["chance_frequency"])
    print_note(console, f"{found['source']}: {found['num_experts']} experts, top-{found['top_k']}")
    print_note(console, f"Tokens: {tokens}")
    columns = ("layer", "expert", "score", "A", "C", *found["domains"])
    rows = [
        (
            str(layer["layer"]) if place == 0 else "",
            str(expert["expert"]),
            f"{100 * expert['score']:.1f}",
            _percent(expert["mean"]),
            _percent(expert["deviation"]),
            *(_against(own, found["chance_frequency"]) for own in expert["frequency"].values()),
            f"{expert['effective_domains']:.1f}",
            _percent(expert["stability"], 0),
            _percent(expert["without_domain"], 0),
        )
        for layer in found["layers"]
        for place, expert in enumerate(layer["chosen"])
    ]
    print_wide(
        console,
        f"Experts that serve every domain, by {found['score']}",
        (*columns, "spread", "stable", "left\nout"),
        rows,
        num_fixed=2,
        has_sections=True,
    )
    print_note(
        console,
        f"In %. A: mean over domains, C: mean absolute deviation, of the share of tokens sent to "
        f"the expert; chance {chance} % (red: a domain uses it less). spread: effective number "
        f"of domains (exp of the entropy). stable: chosen again when text windows are resampled"
        f"{'' if found['num_windows'] else ' (the counts have no windows)'}. "
        "left out: chosen again without one of the domains.",
    )
    print_note(console, _verdict(found))
    if len(found["domains"]) == 1:
        print_note(console, "One domain: nothing tells experts of all domains from specialists.")
    _show_coverage(console, found)


def show_shift(console: Console, found: Content) -> None:
    """What moved in the routing of another model."""
    shift = found["shift"]
    rows = []
    for change in shift["changes"]:
        experts = (
            f"{one['expert']}: {_percent(one['before'])} to {_percent(one['after'])}"
            for one in change["experts"][:3]
        )
        correlation = change["correlation"]
        rows.append(
            (
                change["domain"],
                str(change["layer"]),
                _percent(change["moved"]),
                "-" if correlation is None else f"{correlation:.3f}",
                _percent(change["in_common"], 0),
                "\n".join(experts),
            )
        )
    print_wide(
        console,
        f"Routing of {shift['against']} against {found['source']}",
        ("domain", "layer", "choices\nmoved %", "correlation", "same\ntop-k %", "most changed %"),
        rows,
        num_fixed=2,
    )


def show_decomposition(console: Console, about: Content) -> None:
    """Diagnostics by layer and matrix, and a warning where the average collapsed."""
    rows, notes = [], []
    for entry in about["layers"]:
        for group in entry["groups"]:
            for place, (name, own) in enumerate(group["matrices"].items()):
                rows.append(
                    (
                        str(entry["layer"]) if place == 0 else "",
                        " ".join(map(str, group["experts"])) if place == 0 else "",
                        name,
                        " x ".join(map(str, own["ranks"])),
                        _number(own["retained_energy"]),
                        _number(own["sum_beta"]),
                        _number(own["norm_ratio"]),
                        _number(own["mean_norm_ratio"]),
                    )
                )
                notes += [f"layer {entry['layer']}, {name}: {note}" for note in _warnings(own)]
    columns = ("layer", "experts", "matrix", "ranks", "kept", "sum of\nbeta", "norm")
    print_wide(
        console,
        f"Knowledge of {about['donor']['name']}, {about['decomposition']['method']}",
        (*columns, "of the\nmean"),
        rows,
        num_fixed=3,
        num_left=4,
    )
    print_note(
        console,
        "kept: share of the squared norm. norm: of the knowledge against the mean norm of "
        "the experts; of the mean: the same of their plain mean.",
    )
    for note in notes:
        print_note(console, f"Warning: {note}.")


def _warnings(own: Content) -> list[str]:
    if own["made_safe"]:
        return ["the averaged expert collapsed; all directions across experts were kept instead"]
    if own["collapsed"]:
        return [
            f"the averaged expert collapsed: {own['sum_beta']:.2f} of the average is left; "
            "use --safe, or a larger rank of experts"
        ]
    if own["norm_ratio"] < _SMALL_NORM:
        return [
            f"the norm fell to {own['norm_ratio']:.2f} of an expert's; experts that differ cancel "
            "out, try --align or fewer of them"
        ]
    return []


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _show_coverage(console: Console, found: Content) -> None:
    """The share of each domain's routing that the chosen experts carry."""
    print_wide(
        console,
        "Share of a domain's choices of experts that fall on the chosen ones (%)",
        ("layer", *found["domains"]),
        [
            (str(layer["layer"]), *(_percent(value) for value in layer["coverage"].values()))
            for layer in found["layers"]
        ],
    )
    layers = found["layers"]
    for name in layers[0]["in_common_with"]:
        counts = ", ".join(str(layer["in_common_with"][name]) for layer in layers)
        of = len(layers[0]["chosen"])
        print_note(console, f"Of {of} experts per layer, score {name} would choose too: {counts}")


def _verdict(found: Content) -> str:
    chosen = [expert for layer in found["layers"] for expert in layer["chosen"]]
    everywhere = sum(expert["domains_above_chance"] == 1 for expert in chosen)
    return (
        f"{everywhere} of {len(chosen)} chosen experts are used at least as often as chance in "
        "every domain."
    )


def _against(value: float, chance: float) -> Text:
    return Text(_percent(value, 0), style="red" if value < chance else "")


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"
