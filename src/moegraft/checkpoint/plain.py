"""Open a checkpoint of any architecture: headers and files, but no components."""

import hashlib
from pathlib import Path

from moegraft.checkpoint.folder import CONFIG, read_json, read_tensors
from moegraft.checkpoint.reader import Checkpoint, _locate
from moegraft.families import Family


def locate(source: str) -> Path:
    """The local folder of a source, fetched from the Hub where it is a repository.

    Raises:
        CheckpointError: no such folder, packaged checkpoint or repository.
    """
    return _locate(source)[0]


def open_plain(source: str) -> Checkpoint:
    """Open `source` without rules for its names: it can be loaded and hashed, not composed.

    Its family has no components, and keys and values of its model are not shared between prompts.

    Raises:
        CheckpointError: missing, truncated or corrupt files.
    """
    path, revision = _locate(source)
    config = read_json(path / CONFIG)
    family = Family(name=str(config.get("model_type")), rules=(), branching_cache=False)
    tensors = read_tensors(path)
    return Checkpoint(source, path, config, family, tensors, revision, tuple(tensors))


def folder_digest(path: Path) -> str:
    """Hex sha256 over the names and bytes of all files of a folder, hidden ones left out.

    About 2 s per 4 GB.
    """
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_file() and not any(part.startswith(".") for part in Path(name).parts):
            with file.open("rb") as opened:
                digest.update(
                    f"{name}\n{hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode()
                )
    return digest.hexdigest()
