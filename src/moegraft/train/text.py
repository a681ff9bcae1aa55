"""Texts from files or the Hub as packed blocks of token ids, in an order that a seed decides."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Int32
from torch import Tensor

from moegraft.errors import TrainDataError
from moegraft.train.records import SUFFIXES, read_records, record_files

_PLAIN = (".txt", ".md", ".text")
IGNORED = -100
"""A label that no loss is taken on."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Documents one after another, cut into blocks of equal length.

    Each document stands between a start token (BOS where the tokenizer adds it, else EOS) and EOS.
    What is left of a document at the end of a block goes on in the next one as if it began there.
    """

    ids: Int32[Tensor, "block token"]
    positions: Int32[Tensor, "block token"]
    """Counted from the start of each document, or of the block."""
    answers: Bool[Tensor, "block token"] | None = None
    """Tokens that the loss is taken on; None for all."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all blocks."""
        return self.ids.numel()

    @property
    def length(self) -> int:
        """Tokens of one block."""
        return self.ids.shape[1]

    def __len__(self) -> int:
        return self.ids.shape[0]

    def labels(self, rows: Sequence[int] | Tensor | slice) -> Int[Tensor, "row token"]:
        """Targets of some blocks, unshifted: no document's first token, which nothing predicts."""
        ignored = self.positions[rows] == 0
        if self.answers is not None:
            ignored = ignored | ~self.answers[rows]
        return self.ids[rows].long().masked_fill(ignored, IGNORED)

    def digest(self) -> str:
        """Hex sha256 of the content."""
        found = sha256(str(tuple(self.ids.shape)).encode())
        for tensor in (self.ids, self.positions, self.answers):
            if tensor is not None:
                found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()


def read_documents(
    source: str | Path, *, fields: Sequence[str] = ("text",), split: str = "train"
) -> Iterator[str]:
    """Yield the documents of a file, a folder or a data set on the Hub, in their own order.

    Args:
        source: `.jsonl` or `.parquet` (a record is a document), `.txt` (the file is a document), a
            folder of such files, or `OWNER/NAME` or `OWNER/NAME:CONFIG` on the Hub. Records are
            streamed: nothing is copied to a cache.
        fields: of a record, joined by a newline.
        split: of a data set on the Hub.

    Raises:
        TrainDataError: nothing can be read there, or a record lacks a field.
    """
    path = Path(source).expanduser()
    if path.suffix in _PLAIN and not path.exists():
        raise TrainDataError(f"{source}: no such file or folder")
    if path.suffix in _PLAIN or path.is_dir():
        for file in record_files(path, (*SUFFIXES, *_PLAIN)):
            if file.suffix in _PLAIN:
                yield _plain(file)
            else:
                yield from _texts(str(file), read_records(file), fields)
        return
    yield from _texts(str(source), read_records(source, split=split), fields)


def is_held_out(document: str, share: float) -> bool:
    """Whether a document belongs to the held-out `share`: its hash decides, so order does not."""
    return int.from_bytes(sha256(document.encode()).digest()[:8]) < share * 2**64


def pack(
    documents: Iterable[str], tokenizer: Any, length: int, *, max_tokens: int | None = None
) -> Blocks:
    """Token ids of `documents`, packed; what does not fill a last block is dropped.

    Args:
        documents: texts.
        tokenizer: gives ids, the start token and EOS.
        length: tokens of a block.
        max_tokens: reading stops there.

    Raises:
        TrainDataError: there is not even one block of text, or the tokenizer has no EOS.
    """
    if tokenizer.eos_token_id is None:
        raise TrainDataError("the tokenizer has no end-of-text token to put between documents")
    return pack_ids(_tokens(documents, tokenizer), length, max_tokens=max_tokens)


def pack_ids(
    documents: Iterable[Sequence[int]], length: int, *, max_tokens: int | None = None
) -> Blocks:
    """As `pack`, from the token ids of documents; what stands between them is the caller's.

    Raises:
        TrainDataError: there is not even one block.
    """
    ids: list[int] = []
    positions: list[int] = []
    for document in documents:
        for start, end in _pieces(len(document), len(ids), length):
            ids += document[start:end]
            positions += range(end - start)
        if max_tokens is not None and len(ids) >= max_tokens:
            break
    num_blocks = min(len(ids), max_tokens or len(ids)) // length
    if not num_blocks:
        raise TrainDataError(f"{len(ids)} tokens of text: expected at least one block of {length}")
    columns = (torch.tensor(c[: num_blocks * length], dtype=torch.int32) for c in (ids, positions))
    return Blocks(*(column.view(num_blocks, length) for column in columns))


@dataclass(frozen=True, slots=True)
class Order:
    """Which block is read when: a function of sizes, weights and seed alone, not of the model."""

    sources: Int[np.ndarray, "place"]
    rows: Int[np.ndarray, "place"]
    """The block's index within its source."""


def mixed_order(
    sizes: Sequence[int], num_blocks: int, *, weights: Sequence[float] | None = None, seed: int = 0
) -> Order:
    """Draw `num_blocks` blocks from several sources so that every prefix has the wanted shares.

    A source's blocks come in random order, each once before any comes twice.

    Args:
        sizes: blocks of each source.
        num_blocks: to draw.
        weights: share of each source, in any unit; default: by size, so that all run out together.
        seed: of the orders.
    """
    wanted = np.asarray(sizes if weights is None else weights, dtype=float)
    wanted = wanted / wanted.sum()
    rng = np.random.default_rng(seed)
    # The source that is furthest behind its share is next; ties go to the first one.
    offset = rng.random(len(sizes)) * 1e-6
    sources = np.empty(num_blocks, dtype=np.int64)
    taken = np.zeros(len(sizes))
    for place in range(num_blocks):
        source = int(np.argmax(wanted * (place + 1) - taken + offset))
        sources[place] = source
        taken[source] += 1
    rows = np.empty(num_blocks, dtype=np.int64)
    for source, size in enumerate(sizes):
        count = int(taken[source])
        epochs = [rng.permutation(size) for _ in range(-(-count // size))]
        rows[sources == source] = np.concatenate([*epochs, []])[:count]
    return Order(sources, rows)


def check_weights(
    sources: Mapping[str, Blocks], weights: Mapping[str, float] | None
) -> list[float] | None:
    """The weights in the order of `sources`.

    Raises:
        TrainDataError: a weight is missing, superfluous or not positive; or blocks differ in
            length.
    """
    if not sources:
        raise TrainDataError("no source of text to train on")
    lengths = {name: blocks.length for name, blocks in sources.items()}
    if len(set(lengths.values())) > 1:
        raise TrainDataError(f"blocks of the sources differ in length: {lengths}")
    if weights is None:
        return None
    for name in {*sources, *weights}:
        if name not in sources or not weights.get(name, 0) > 0:
            got = weights.get(name, "none")
            known = ", ".join(sources)
            raise TrainDataError(f"weight of {name!r}: expected one above 0 for {known}, got {got}")
    return [weights[name] for name in sources]


def _plain(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainDataError(f"{file}: cannot be read: {error}") from None


def _texts(
    where: str, records: Iterable[Mapping[str, Any]], fields: Sequence[str]
) -> Iterator[str]:
    for number, record in enumerate(records, 1):
        texts = [text for field in fields if isinstance(text := record.get(field), str)]
        if len(texts) < len(fields):
            known = ", ".join(k for k, v in record.items() if isinstance(v, str)) or "none"
            raise TrainDataError(
                f"{where}: record {number} has no text in {', '.join(fields)}; fields with "
                f"text: {known}"
            )
        yield "\n".join(texts)


def _tokens(documents: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    end = tokenizer.eos_token_id
    first = tokenizer("a")["input_ids"][0]
    start = first if first == tokenizer.bos_token_id else end
    encoded = (
        tokenizer(group, add_special_tokens=False, verbose=False)["input_ids"]
        for group in _grouped(documents)
    )
    return ([start, *ids, end] for ids in chain.from_iterable(encoded) if ids)


def _grouped(documents: Iterable[str]) -> Iterator[list[str]]:
    left = iter(documents)
    while group := [*islice(left, 64)]:
        yield group


def _pieces(size: int, before: int, length: int) -> Iterator[tuple[int, int]]:
    """Where to cut a document of `size` tokens that begins behind `before` tokens of others."""
    start = 0
    while start < size:
        end = min(size, start + length - (before + start) % length)
        yield start, end
        start = end
