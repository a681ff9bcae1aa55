from io import StringIO

from rich.console import Console
from rich.text import Text

from moegraft.cli.wide_table import print_note, print_wide

COLUMNS = ("layer", "expert", "first domain", "second\ndomain", "third domain")
ROWS = [
    ("0", "41", "20", Text("32"), "[+0.1, +0.2]"),
    ("", "17", "23", Text("9"), "[-0.1, +0.2]"),
    ("1", "48", "15", Text("21"), "[bold]"),
]


def printed(width, **options):
    console = Console(width=width, file=StringIO())
    print_wide(console, "What is used where, in per cent", COLUMNS, ROWS, **options)
    text = console.file.getvalue()
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    return [line.rstrip() for line in text.splitlines()]


def test_a_wide_terminal_shows_one_block():
    assert printed(80, num_fixed=2) == [
        "What is used where, in per cent",
        "",
        "                              second",
        " layer  expert  first domain  domain  third domain",
        " ─────────────────────────────────────────────────",
        " 0          41            20      32  [+0.1, +0.2]",
        "            17            23       9  [-0.1, +0.2]",
        " 1          48            15      21        [bold]",
        "",
    ]


def test_columns_that_do_not_fit_follow_below_with_the_fixed_ones():
    lines = printed(38, num_fixed=2)
    headers = [line.split() for line in lines if "layer" in line]
    assert headers == [
        ["layer", "expert", "first", "domain", "domain"],
        ["layer", "expert", "third", "domain"],
    ]
    assert " 1          48        [bold]" in lines
    assert not any("…" in line for line in lines)


def test_the_exact_width_is_enough_and_one_less_is_not():
    (rule,) = {line for line in printed(80, num_fixed=2) if "─" in line}
    width = len(rule) + 1  # the table's right edge
    assert sum("layer" in line for line in printed(width, num_fixed=2)) == 1
    assert sum("layer" in line for line in printed(width - 1, num_fixed=2)) == 2


def test_sections_begin_where_the_first_cell_is_not_empty():
    lines = printed(80, num_fixed=2, has_sections=True)
    first = next(place for place, line in enumerate(lines) if line.startswith(" 0"))
    assert lines[first + 2] == "" and lines[first + 3].startswith(" 1")
    assert lines[first + 1] == "            17            23       9  [-0.1, +0.2]"


def test_notes_break_between_words_and_keep_brackets():
    console = Console(width=20, file=StringIO())
    print_note(console, "a difference of [bold] points")
    assert console.file.getvalue() == "a difference of \n[bold] points\n"
