# What type checkers and editors see of the names that __init__.py imports on first use.
from moegraft.checkpoint import open_checkpoint as open_checkpoint
from moegraft.errors import MoegraftError as MoegraftError
from moegraft.runtime import Host as Host
from moegraft.runtime import Patch as Patch
from moegraft.runtime import swapped as swapped
from moegraft.transfer import TransferRecipe as TransferRecipe
from moegraft.transfer import apply_plan as apply_plan
from moegraft.transfer import composed as composed
from moegraft.transfer import lm as lm
from moegraft.transfer import plan_transfer as plan_transfer

__version__: str
