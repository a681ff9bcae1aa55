"""What `xpert compare` prints: the arms of each protocol, with paired intervals."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from moegraft.cli.wide_table import print_note, print_wide
from moegraft.xpert.compare_report import COLUMNS, NOTE, arm_rows, verdicts


def show_outcome(console: Console, summary: Mapping[str, Any]) -> None:
    """A table for each protocol, and what it says about the method."""
    for protocol, found in summary["protocols"].items():
        title = f"{summary['target']} from {summary['donor']}, protocol {protocol}"
        print_wide(console, f"{title}, {found['num_steps']} steps", COLUMNS, [*arm_rows(found)])
        for line in verdicts(found):
            print_note(console, line)
        console.print()
    print_note(console, NOTE)
