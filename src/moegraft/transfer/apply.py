"""Carry a plan out to disk: byte ranges from host and donors, the host's layout and side files."""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from moegraft.checkpoint import StoredPiece, TensorHeader
from moegraft.checkpoint.header import read_header
from moegraft.checkpoint.writer import (
    ByteRange,
    Entry,
    Produced,
    plan_shards,
    shards_bytes,
    staged_output,
    write_shards,
)
from moegraft.errors import MissingExtraError, OutputError
from moegraft.transfer.plan import Filling, Plan, Source
from moegraft.transfer.provenance import PROVENANCE, write_provenance
from moegraft.transfer.publish import CARD, find_licence, write_card

_SIDE_SUFFIXES = {".json", ".jinja", ".model", ".txt", ".tiktoken"}
_SIDE_NAMES = ("license", "licence", "notice", "use_policy")
_LEFT_OUT = {PROVENANCE, CARD, "trainer_state.json", "adapter_config.json"}
_CHUNK_BYTES = 8 << 20


def apply_plan(
    plan: Plan,
    out: str | Path,
    *,
    verify: bool = False,
    on_bytes: Callable[[int], None] | None = None,
) -> Path:
    """Write the composed checkpoint to `out`, in the host's layout and shards.

    Whole pieces are moved as byte ranges and never decoded; only mixes and casts import torch, one
    piece at a time. Config, tokenizer, generation config and licence files are the host's. The
    folder appears under its name only when it is complete and flushed; on an exception nothing of
    it stays. Peak memory is a copy buffer, or one piece.

    Args:
        plan: from `plan_transfer`.
        out: the folder to make; absent or empty, and no input.
        verify: afterwards compare every moved byte with its source, and record content hashes
            (reads everything once more; about 2 s per 4 GB and pass).
        on_bytes: progress, called with the number of tensor bytes after each step.

    Returns:
        The output folder.

    Raises:
        OutputError: `out` cannot be used, or the disk is full.
        RecipeError: the sources' licences differ and the recipe names none.
        CheckpointError: a source changed meanwhile.
    """
    licence = find_licence(plan)
    entries = [_entry(t, plan.fillings[name]) for name, t in plan.host.tensors.items()]
    shards = plan_shards(
        entries, shard_of={name: str(t.file) for name, t in plan.host.tensors.items()}
    )
    carried, left_out = side_files(plan.host.path)
    needed = shards_bytes(shards) + sum(file.stat().st_size for file in carried) + (1 << 20)
    inputs = [plan.host.path, *(donor.path for donor in plan.donors.values())]
    with staged_output(out, inputs=inputs, needed_bytes=needed) as folder:
        write_shards(folder, shards, on_bytes=on_bytes)
        if verify:
            _compare(folder, shards)
        for file in carried:
            target = folder / file.relative_to(plan.host.path)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
        hashes = _content_hashes(plan, folder, shards) if verify else None
        write_provenance(folder, plan, licence.identifier, left_out=left_out, content_hashes=hashes)
        write_card(folder, plan, licence, title=Path(out).expanduser().resolve().name)
    return Path(out)


def side_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Files of a checkpoint that go with it to the output, and the names of those that do not.

    Config, tokenizer, generation config, chat templates and licence texts go. Weights in other
    formats, pickles, code, old model cards and training leftovers do not.
    """
    carried, left_out = [], []
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or not file.is_file():
            continue
        if file.suffix == ".safetensors" or file.name.endswith(".safetensors.index.json"):
            continue
        wanted = file.suffix in _SIDE_SUFFIXES or file.name.lower().startswith(_SIDE_NAMES)
        if wanted and file.name not in _LEFT_OUT and not file.name.endswith(".index.json"):
            carried.append(file)
        else:
            left_out.append(file.name)
    carried += sorted(folder.glob("additional_chat_templates/*.jinja"))
    return carried, left_out


def _entry(tensor: TensorHeader, fillings: Sequence[Filling]) -> Entry:
    if not fillings:
        return Entry.of(tensor)
    sources: list[ByteRange | Produced] = []
    for stored, source, origin in fillings:
        if source.copies:
            piece, given = origin.piece, origin.tensor
            sources.append(ByteRange(given.file, given.start + piece.offset, piece.nbytes))
        else:
            produce = partial(_mixed_bytes, source, stored, origin)
            sources.append(Produced(stored.piece.nbytes, produce))
    return Entry(tensor.name, tensor.dtype, tensor.shape, tuple(sources))


def _mixed_bytes(source: Source, host: StoredPiece, donor: StoredPiece) -> Any:
    try:
        import torch

        from moegraft.transfer.mix import fill_piece
    except ImportError:
        raise MissingExtraError(
            f"{source}: mixing and casting need torch; pip install 'moegraft[eval]'"
        ) from None
    return fill_piece(source, host, donor).contiguous().view(-1).view(torch.uint8).numpy()


def _compare(folder: Path, shards: Mapping[str, Sequence[Entry]]) -> None:
    """Every moved byte range of the written shards against its source."""
    for shard, entries in shards.items():
        written = read_header(folder / shard)
        with (folder / shard).open("rb") as stream:
            for entry in entries:
                position = written[entry.name].start
                for source in entry.sources:
                    if isinstance(source, ByteRange):
                        stream.seek(position)
                        _compare_range(stream, source, entry.name)
                    position += source.nbytes


def _compare_range(stream: Any, source: ByteRange, name: str) -> None:
    with source.file.open("rb") as original:
        original.seek(source.start)
        left = source.nbytes
        while left:
            count = min(left, _CHUNK_BYTES)
            if original.read(count) != stream.read(count):
                raise OutputError(
                    f"{name}: the written bytes differ from {source.file}; was the source "
                    "rewritten meanwhile, or is the disk failing?"
                )
            left -= count


def _content_hashes(
    plan: Plan, folder: Path, shards: Mapping[str, Sequence[Entry]]
) -> dict[str, dict[str, str]]:
    checkpoints = {"host": plan.host, **plan.donors}
    found = {
        name: {file.relative_to(c.path).as_posix(): hash_file(file) for file in c.files}
        for name, c in checkpoints.items()
    }
    found["output"] = {shard: hash_file(folder / shard) for shard in shards}
    return found


def hash_file(file: Path) -> str:
    """Sha256 of a whole file; 2 s per 3.6 GB."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
