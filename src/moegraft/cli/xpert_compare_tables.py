"""What `xpert compare` prints: the arms of each protocol, with paired intervals."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from moegraft.xpert.compare_report import COLUMNS, NOTE, arm_rows, verdicts


def show_outcome(console: Console, summary: Mapping[str, Any]) -> None:
    """A table for each protocol, and what it says about the method."""
    for protocol, found in summary["protocols"].items():
        table = Table(
            title=f"{summary['target']} from {summary['donor']}, protocol {protocol}",
            box=box.SIMPLE_HEAD,
            title_justify="left",
            pad_edge=False,
        )
        for place, column in enumerate(COLUMNS):
            table.add_column(column, justify="right" if place else "left", no_wrap=True)
        for row in arm_rows(found):
            table.add_row(*row)
        console.print(table)
        for line in verdicts(found):
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(NOTE, highlight=False, soft_wrap=True, markup=False)
