"""report.md of a comparison of starts: tables by protocol, and what they say in words."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moegraft.evals.store import write_atomically
from moegraft.xpert.arms import ARMS, BASELINE, METHOD

REPORT = "report.md"
COLUMNS = ("arm", "start", "end", "against random", "p", "steps")
NOTE = (
    "Losses in nats per token on held-out text, every domain alike; end: mean and standard "
    "deviation over seeds. Against random: final losses with their 95 % interval, paired over "
    "seeds and validation blocks; p after Holm. Steps: until random's final loss is reached, - "
    "where a seed never does."
)


def arm_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Cells of one protocol's table, lowest final loss first."""
    for name, arm in sorted(found["arms"].items(), key=lambda item: item[1]["final"]):
        test = arm["against_baseline"]
        steps = arm["steps_to_baseline"]
        yield (
            name,
            f"{arm['first']:.3f}",
            f"{arm['final']:.3f}±{arm['final_deviation']:.3f}",
            "" if test is None else _estimate(test),
            "" if test is None else _p(test["p_holm"]),
            "-" if steps is None else f"{steps:.0f}",
        )


def verdicts(found: Mapping[str, Any]) -> Iterator[str]:
    """Lines about the method: against random numbers, and against every other arm."""
    method = found["arms"].get(METHOD)
    if method is None or found["method_against"] is None:
        return
    yield _verdict(method["against_baseline"], BASELINE)
    for name, test in found["method_against"].items():
        low, high = (-edge for edge in reversed(test["interval"]))
        turned = {**test, "difference": -test["difference"], "interval": [low, high]}
        yield _verdict(turned, name)


def write_report(summary: Mapping[str, Any], folder: Path) -> None:
    """Write report.md."""
    validation = sum(summary["validation_tokens"].values())
    parts = [
        f"# {summary['target']} that starts from {summary['donor']}",
        f"Donor {summary['donor_parameters']:,} parameters, target "
        f"{summary['target_parameters']:,}. Domains: {', '.join(summary['domains'])}; "
        f"{validation:,} tokens of validation.",
    ]
    for protocol, found in summary["protocols"].items():
        told = "\n".join(f"- {line}" for line in verdicts(found))
        heading = f"## Protocol {protocol}, {found['num_steps']} steps"
        parts += [heading, _table(found), told]
    parts += [NOTE, "## Arms"]
    names = dict.fromkeys(name for found in summary["protocols"].values() for name in found["arms"])
    parts.append("\n".join(f"- `{name}`: {ARMS[name].what}" for name in names))
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_atomically(folder / REPORT, text.encode())


def _table(found: Mapping[str, Any]) -> str:
    rows = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *arm_rows(found)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _verdict(test: Mapping[str, Any], other: str) -> str:
    p = _p(test["p_holm"])
    told = f"({_estimate(test)} nats, p {p if p[0] == '<' else '= ' + p})"
    if test["p_holm"] >= 0.05:
        return f"xpert is not told apart from {other} {told}."
    return f"xpert ends {'below' if test['difference'] < 0 else 'above'} {other} {told}."


def _estimate(test: Mapping[str, Any]) -> str:
    low, high = test["interval"]
    return f"{test['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")
