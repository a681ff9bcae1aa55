"""Tables whose columns follow one another downwards where the terminal is too narrow for all."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

Cell = str | Text
_GAP = 2
"""Between two columns, and beside the outer ones together."""


def print_wide(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    num_fixed: int = 1,
    num_left: int = 1,
    has_sections: bool = False,
) -> None:
    """Print a table without cutting a cell; what does not fit the width follows in more blocks.

    Args:
        console: whose width decides.
        title: in one line above.
        columns: headers; a newline folds one.
        rows: cells of each row.
        num_fixed: the first columns, which every block begins with.
        num_left: the first columns that are set flush left.
        has_sections: a line of space before every row whose first cell is not empty.
    """
    console.print(Text(title, style="italic"), soft_wrap=True)
    widths = [
        max([_width(columns[place]), *(_width(row[place]) for row in rows)])
        for place in range(len(columns))
    ]
    for shown in _blocks(widths, num_fixed, console.width):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
        for place in shown:
            side = "left" if place < num_left else "right"
            table.add_column(columns[place], justify=side, vertical="bottom", no_wrap=True)
        for number, row in enumerate(rows):
            ends = has_sections and number + 1 < len(rows) and str(rows[number + 1][0]) != ""
            table.add_row(*(_text(row[place]) for place in shown), end_section=ends)
        console.print(table)


def print_note(console: Console, text: str) -> None:
    """A paragraph, broken between words at the width of the terminal."""
    console.print(text, highlight=False, markup=False)


def _blocks(widths: Sequence[int], num_fixed: int, room: int) -> Iterator[list[int]]:
    """Numbers of the columns of each block."""
    fixed = list(range(num_fixed))
    used = start = sum(widths[place] + _GAP for place in fixed)
    block: list[int] = []
    for place in range(num_fixed, len(widths)):
        width = widths[place] + _GAP
        if block and used + width > room:
            yield fixed + block
            block, used = [], start
        block.append(place)
        used += width
    yield fixed + block


def _width(cell: Cell) -> int:
    return max(map(cell_len, str(cell).split("\n")))


def _text(cell: Cell) -> Text:
    """As it is: brackets are no markup."""
    return cell if isinstance(cell, Text) else Text(cell)
