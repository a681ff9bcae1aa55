# What type checkers and editors see of the names that __init__.py imports on first use.
from moegraft.runtime.fit import estimate_memory as estimate_memory
from moegraft.runtime.host import Host as Host
from moegraft.runtime.memory import MemoryEstimate as MemoryEstimate
from moegraft.runtime.swap import Patch as Patch
from moegraft.runtime.swap import swapped as swapped
