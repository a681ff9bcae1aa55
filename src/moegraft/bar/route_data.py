"""The data of a router training: a small share of every domain, and texts held out of it.

Each source is sampled at the same share, so that every domain keeps its weight ("stratified").
A hash of the record decides, so the order of records does not matter, and a larger share holds
the smaller one.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from moegraft.errors import TrainDataError
from moegraft.train.chats import encode_chat, pack_answers, pack_chats, read_chats
from moegraft.train.records import SUFFIXES, read_records
from moegraft.train.text import Blocks, pack, read_documents

_HELD_TOKENS = 65_536
"""Of each domain, at most so many tokens are held out and measured."""


@dataclass(frozen=True)
class RouteData:
    """Packed data by domain."""

    train: Mapping[str, Blocks]
    held_out: Mapping[str, Blocks]
    held_out_ids: Mapping[str, Sequence[Sequence[int]]]
    """The same, text by text."""
    num_records: Mapping[str, tuple[int, int, int]]
    """Sampled, held out, and all records."""

    @property
    def num_tokens(self) -> int:
        """Tokens of one epoch."""
        return sum(blocks.num_tokens for blocks in self.train.values())


def read_route_data(
    sources: Mapping[str, str],
    tokenizer: Any,
    *,
    share: float,
    held_out: float,
    length: int,
    seed: int,
) -> RouteData:
    """Sample and pack every source.

    Args:
        sources: by domain, a file or folder of chats or texts, or a data set on the Hub.
        tokenizer: of the model; chats need its template.
        share: of the records of each source that is trained on.
        held_out: share of the records that is only measured.
        length: tokens of a block.
        seed: of the sample; what is held out does not depend on it.

    Raises:
        TrainDataError: a domain is empty, or nothing can be read there.
    """
    train, held, ids, counts = {}, {}, {}, {}
    for name, source in sources.items():
        is_chat = _holds_chats(source)
        records = read_chats(source) if is_chat else read_documents(source)
        sample, kept, total = _split(records, share, held_out, seed)
        if not total:
            raise TrainDataError(f"domain {name!r}: {source} holds no record")
        if not sample or not kept:
            raise TrainDataError(
                f"domain {name!r}: {source} holds {total} records, expected two "
                "different ones at least, to train on and to measure"
            )
        packing = _pack_chats if is_chat else _pack_texts
        train[name], _ = packing(sample, tokenizer, length, None)
        held[name], ids[name] = packing(kept, tokenizer, length, _HELD_TOKENS)
        counts[name] = (len(sample), len(kept), total)
    return RouteData(train, held, ids, counts)


def _holds_chats(source: str) -> bool:
    path = Path(source).expanduser()
    if path.is_dir() and not any(file.suffix in SUFFIXES for file in path.iterdir()):
        return False
    if path.is_file() and path.suffix not in SUFFIXES:
        return False
    first = next(read_records(source), None)
    return first is not None and ("messages" in first or "prompt" in first)


def _split(
    records: Iterable[Any], share: float, held_out: float, seed: int
) -> tuple[list[Any], list[Any], int]:
    """What is trained on, what is held out, and how many there are; at least one of each."""
    sample: list[Any] = []
    held: list[Any] = []
    last = (0.0, None)  # of those held out, the one that is so by least
    nearest: dict[str, tuple[float, Any]] = {}
    total = 0
    for record in records:
        total += 1
        text = json.dumps(record, sort_keys=True, ensure_ascii=False)
        outside, inside = _place(text), _place(f"{seed}\n{text}")
        if outside < held_out:
            held.append(record)
            last = max(last, (outside, record), key=lambda own: own[0])
            continue
        if inside < share:
            sample.append(record)
        for key, place in (("held", outside), ("sample", inside)):
            if key not in nearest or place < nearest[key][0]:
                nearest[key] = (place, record)
    if not held and total > 1:
        held = [nearest["held"][1]]
        sample = [record for record in sample if record != held[0]]
    if not sample and not nearest:
        sample = [last[1]] * bool(held)
        held = [record for record in held if record != last[1]]
    if not sample and "sample" in nearest and nearest["sample"][1] not in held:
        sample = [nearest["sample"][1]]
    return sample, held, total


def _place(text: str) -> float:
    return int.from_bytes(sha256(text.encode()).digest()[:8]) / 2**64


def _pack_chats(
    chats: Sequence[Any], tokenizer: Any, length: int, max_tokens: int | None
) -> tuple[Blocks, list[list[int]]]:
    blocks = pack_chats(chats, tokenizer, length, max_tokens=max_tokens)
    return blocks, list(_limited((encode_chat(tokenizer, c)[0] for c in chats), length, max_tokens))


def _pack_texts(
    texts: Sequence[str], tokenizer: Any, length: int, max_tokens: int | None
) -> tuple[Blocks, list[list[int]]]:
    """Texts of less than a block fill one of their own, with padding."""
    ids = list(_limited((tokenizer(text)["input_ids"] for text in texts), length, max_tokens))
    if sum(map(len, ids)) >= length:
        return pack(texts, tokenizer, length, max_tokens=max_tokens), ids
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return pack_answers(((own, [True] * len(own)) for own in ids if own), length, pad), ids


def _limited(
    texts: Iterator[list[int]], length: int, max_tokens: int | None
) -> Iterator[list[int]]:
    """Token ids of each text up to `length`, until `max_tokens` are reached."""
    total = 0
    for ids in texts:
        yield ids[:length]
        total += min(len(ids), length)
        if max_tokens is not None and total >= max_tokens:
            return
