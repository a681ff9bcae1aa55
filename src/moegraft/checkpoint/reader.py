"""Open a checkpoint by its headers alone: from a folder, a Hub repository, or `nano:NAME`.

checkpoint = open_checkpoint("allenai/OLMoE-1B-7B-0924-Instruct@main")
checkpoint.pieces()            # {Key: StoredPiece}, the same keys for every layout
read_bytes(piece_or_header)    # exactly the stored bytes
load_tensor(header)            # a torch tensor over a private memory map of the file
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from moegraft.checkpoint.audit import check_complete
from moegraft.checkpoint.folder import (
    CONFIG,
    INDEX,
    SINGLE,
    TOKENIZER_FILES,
    index_files,
    read_json,
    read_tensors,
)
from moegraft.checkpoint.header import TensorHeader, read_header_bytes
from moegraft.checkpoint.tensors import StoredPiece, hash_bytes, load_tensor, read_array, read_bytes
from moegraft.errors import CheckpointError, FamilyError
from moegraft.families import Family, Key, find_family

__all__ = [
    "Checkpoint",
    "StoredPiece",
    "TensorHeader",
    "hash_bytes",
    "load_tensor",
    "open_checkpoint",
    "read_array",
    "read_bytes",
]

_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_NANO = "nano:"
_SMALL_FILES = (CONFIG, INDEX, "generation_config.json", "README.md", *TOKENIZER_FILES)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; holds headers, never tensors."""

    source: str
    """As the user wrote it: folder, `org/name[@revision]` or `nano:NAME`."""
    path: Path
    """The local folder that holds the files."""
    config: Mapping[str, Any]
    """config.json."""
    family: Family
    tensors: Mapping[str, TensorHeader]
    """By stored name, in file order then offset order."""
    revision: str | None = None
    """Resolved Hub commit, when the source is a Hub repository."""
    unknown: tuple[str, ...] = ()
    """Names that fit no pattern, listed only under `unknown="host"`; they have no piece."""

    @cached_property
    def layout(self) -> Literal["published", "fused", "dense"]:
        """`fused` if experts are stacked in one tensor, `published` if each has its own."""
        found = [stored for key, stored in self.pieces().items() if key[0] == "experts"]
        if not found:
            return "dense"
        stacked = any(len(stored.piece.shape) < len(stored.tensor.shape) for stored in found)
        return "fused" if stacked else "published"

    @property
    def num_layers(self) -> int:
        """Number of decoder layers, from config.json."""
        return self.family.num_layers(self.config)

    @property
    def num_experts(self) -> int:
        """Number of routed experts per layer, from config.json; 0 for a dense model."""
        return self.family.num_experts(self.config)

    @property
    def tied_embeddings(self) -> bool:
        """Whether the output head is the embedding: config.json says so, or no head is stored."""
        sizes = self.family.sizes(self.config)
        tied = sizes.get("tie_word_embeddings", self.config.get("tie_word_embeddings"))
        return tied is True or not any(key.component == "lm_head" for key in self.pieces())

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """The tokenizer's files in the folder, chat template included."""
        found = [self.path / name for name in TOKENIZER_FILES if (self.path / name).is_file()]
        return tuple(found) + tuple(sorted(self.path.glob("additional_chat_templates/*.jinja")))

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files, in reading order."""
        return tuple(dict.fromkeys(tensor.file for tensor in self.tensors.values()))

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, headers not counted."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def pieces(self) -> Mapping[Key, StoredPiece]:
        """Every piece of every tensor by canonical key: the same for all layouts.

        Raises:
            CheckpointError: two tensors hold the same piece (published and fused at once).
        """
        return self._pieces

    def header_hashes(self) -> dict[str, dict[str, str | int]]:
        """Identity of each file without reading its data, cheap enough for every run.

        `header_sha256` (length field included) and `size` of every file; `blob`, the content hash
        that the Hub's cache files it under, for Hub sources.
        """
        found: dict[str, dict[str, str | int]] = {}
        for file in self.files:
            raw, size = read_header_bytes(file)
            entry: dict[str, str | int] = {
                "header_sha256": hashlib.sha256(raw).hexdigest(),
                "size": size,
            }
            blob = file.resolve()
            if self.revision is not None and blob.parent.name == "blobs":
                entry["blob"] = blob.name
            found[file.relative_to(self.path).as_posix()] = entry
        return found

    def content_hashes(self) -> dict[str, str]:
        """Sha256 of every tensor's bytes by stored name; reads everything, about 2 s per 4 GB."""
        return {name: hash_bytes(tensor) for name, tensor in self.tensors.items()}

    @cached_property
    def _pieces(self) -> dict[Key, StoredPiece]:
        found: dict[Key, StoredPiece] = {}
        unknown = frozenset(self.unknown)
        for name, tensor in self.tensors.items():
            if name in unknown:
                continue
            for piece in self.family.pieces(name, tensor.shape, tensor.nbytes):
                stored = StoredPiece(piece, tensor)
                first = found.setdefault(piece.key, stored)
                if first is not stored:
                    raise CheckpointError(
                        f"{self.source}: {piece.key} is stored twice, "
                        f"in {first.tensor.name} and in {name}"
                    )
        return found


def open_checkpoint(
    source: str | Path,
    *,
    family_map: Path | None = None,
    unknown: Literal["error", "host"] = "error",
) -> Checkpoint:
    """Open `source` by its headers and check that it is whole; no tensor is read.

    Args:
        source: a folder; `org/name` or `org/name@revision` on the Hub (only the files needed are
            fetched; the local cache and HF_HUB_OFFLINE are honoured); or `nano:NAME`, a packaged
            checkpoint. An existing folder wins over a Hub repository of the same name.
        family_map: YAML with the naming rules of a family that is not in the catalogue.
        unknown: what to do with a tensor that fits no rule: `error`, or `host` to list it in
            `Checkpoint.unknown` and give it no piece.

    Raises:
        CheckpointError: missing, truncated, corrupt, or contradicting its index or config.json.
        FamilyError: unsupported model type, or a tensor name that fits no pattern.
    """
    path, revision = _locate(str(source))
    config = read_json(path / CONFIG)
    family = find_family(config, family_map, where=str(path / "config.json"))
    tensors = read_tensors(path)
    names = tuple(name for name in tensors if not _known(family, name)) if unknown == "host" else ()
    checkpoint = Checkpoint(str(source), path, config, family, tensors, revision, names)
    with _named(checkpoint.source):
        pieces = checkpoint.pieces()
    check_complete(checkpoint.source, pieces, family, config, has_unknown=bool(names))
    return checkpoint


@contextmanager
def _named(source: str) -> Iterator[None]:
    """Say of which checkpoint a family does not know the name."""
    try:
        yield
    except FamilyError as error:
        raise FamilyError(f"{source}: {error}") from None


def _known(family: Family, name: str) -> bool:
    try:
        family.place(name)
    except FamilyError:
        return False
    return True


def _locate(source: str) -> tuple[Path, str | None]:
    if source.startswith(_NANO):
        return _packaged(source.removeprefix(_NANO)), None
    try:
        folder = Path(source).expanduser()
    except RuntimeError:  # ~name of nobody
        folder = Path(source)
    if folder.is_dir():
        return folder, None
    match = _HUB_ID.fullmatch(source)
    if match is None:
        raise CheckpointError(
            f"{source}: no such folder (a Hub repository is written org/name or org/name@revision)"
        )
    return _fetch(source, match["repo"], match["revision"])


def _packaged(name: str) -> Path:
    root = Path(__file__).parent.parent / "nano" / "checkpoints"
    names = sorted(path.parent.name for path in root.glob(f"*/{CONFIG}"))
    if name not in names:
        listed = ", ".join(_NANO + known for known in names) or "none in this installation"
        raise CheckpointError(f"{_NANO}{name}: no such packaged checkpoint; there are: {listed}")
    return root / name


def _fetch(source: str, repo: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import errors

    refusals = tuple(
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, Exception)
    )
    try:
        folder = _snapshot(repo, revision, _SMALL_FILES)
        shards = index_files(folder) if (folder / INDEX).exists() else (SINGLE,)
        _snapshot(repo, folder.name, shards)
    except (OSError, ValueError, *refusals) as error:
        if isinstance(error, CheckpointError):
            raise
        why = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{source}: no such folder, and the Hub does not give it: {why}"
        ) from None
    return folder, folder.name


def _snapshot(repo: str, revision: str | None, names: tuple[str, ...]) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(names)))
    except LocalEntryNotFoundError:
        # Offline, a snapshot that another tool fetched may lack a file that we do without
        # (a model card); what must be there is checked when it is read.
        local = hf_hub_download(repo, CONFIG, revision=revision, local_files_only=True)
        return Path(local).parent
