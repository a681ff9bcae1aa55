# What type checkers and editors see of the names that __init__.py imports on first use.
from moegraft.report.summary import summarize as summarize
from moegraft.report.tables import print_tables as print_tables
from moegraft.report.verdict import verdicts as verdicts
from moegraft.report.write import write_report as write_report
