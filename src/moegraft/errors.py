"""Every error that a user can cause; each prints as one line without a traceback."""


class MoegraftError(Exception):
    """Root of all errors that a user can cause.

    The message says where it happened, what was found, what was expected, and the way out.
    The command line prints it after `error: ` and exits with status 2.
    """


class RecipeError(MoegraftError, ValueError):
    """A recipe, a flag or a selection is invalid, misspelt or contradicts another one."""


class CheckpointError(MoegraftError, ValueError):
    """A checkpoint is missing, truncated, corrupt, or holds what its index or header denies."""


class FamilyError(MoegraftError, ValueError):
    """A model type is not in the catalogue, or a tensor name fits none of its patterns."""


class IncompatibleError(MoegraftError, ValueError):
    """Two checkpoints do not fit together: family, shapes, dtypes, numbers of layers or experts."""


class OutputError(MoegraftError, OSError):
    """A result cannot be written: folder not empty, equal to an input, or the disk is full."""


class ResourceError(MoegraftError, RuntimeError):
    """The work does not fit into the memory, disk or device at hand."""


class MissingExtraError(MoegraftError, ImportError):
    """The command needs an optional dependency that is not installed."""


class EvalDataError(MoegraftError, ValueError):
    """A task, its data or its prompts cannot be used as asked."""


class UnknownTaskError(EvalDataError):
    """There is no task of this name."""


class TrainDataError(MoegraftError, ValueError):
    """Texts or records cannot be trained on: unreadable, empty, or without the wanted fields."""


class TrainingError(MoegraftError, RuntimeError):
    """Training cannot go on: its loss or a gradient is no finite number."""


class RunError(MoegraftError, RuntimeError):
    """A run directory is locked by another process, or belongs to another recipe."""


class ResultsError(MoegraftError, ValueError):
    """Item results that cannot be read, paired or compared: damaged, duplicate, disjoint."""


class FrozenMovedError(MoegraftError, RuntimeError):
    """A part of a model that was to stay frozen has moved."""


class BranchError(MoegraftError, ValueError):
    """A branch lacks its manifest or contradicts it, or branches do not fit together."""
