"""Whether a run directory holds anything that was scored, and what is forgotten if it does not."""

from contextlib import suppress
from pathlib import Path


def has_begun(run_dir: Path) -> bool:
    """Whether anything may have been scored; until then a folder is free for another recipe."""
    return (run_dir / "env.json").exists() or (run_dir / "items").exists()


def forget_unbegun(run_dir: Path) -> None:
    """Remove recipe and locks of a run that never began, and the folder if that was all.

    For a process that holds the right to write, as the only shard.
    """
    if has_begun(run_dir):
        return
    locks = run_dir / "state" / "locks"
    for file in (run_dir / "recipe.yaml", *(locks / name for name in ("gate", "merge", "1-of-1"))):
        file.unlink(missing_ok=True)
    for folder in (locks, locks.parent, run_dir):
        with suppress(OSError):
            folder.rmdir()
