# What type checkers and editors see of the names that __init__.py imports on first use.
from moegraft.compare.gate import gate as gate
from moegraft.compare.imports import read_results as read_results
from moegraft.compare.results import pair as pair
from moegraft.compare.table import compare as compare
