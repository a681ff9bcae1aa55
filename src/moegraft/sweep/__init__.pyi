# What type checkers and editors see of the names that __init__.py imports on first use.
from moegraft.sweep.blame import BlameRecipe as BlameRecipe
from moegraft.sweep.blame import run_blame as run_blame
from moegraft.sweep.design import Configuration as Configuration
from moegraft.sweep.design import NamedConfiguration as NamedConfiguration
from moegraft.sweep.design import SweepRecipe as SweepRecipe
from moegraft.sweep.design import design as design
from moegraft.sweep.execute import run_sweep as run_sweep
