"""Texts of several domains as packed blocks to train on, and others, held out, to validate on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moegraft.errors import EvalDataError, TrainDataError
from moegraft.evals.texts import Text, read_domains
from moegraft.train.text import Blocks, is_held_out, pack_ids


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts and blocks by domain."""

    texts: Mapping[str, Sequence[Text]]
    """Of training; experts are identified on them."""
    train: Mapping[str, Blocks]
    validation: Mapping[str, Blocks]


def read_corpus(
    sources: Sequence[str],
    tokenizer: Any,
    *,
    validation: Sequence[str] = (),
    held_out: float = 0.1,
    length: int = 256,
    max_tokens: int = 1_000_000,
    validation_blocks: int = 64,
    **options: Any,
) -> Corpus:
    """Read domains, and keep texts that training never sees.

    Args:
        sources: as `evals.texts.read_domains` has them: files, folders, tasks; `NAME=SOURCE`.
        tokenizer: of donor and target.
        validation: other sources to validate on; without them, a share of the texts is held out:
            the hash of a document (of a window, where a file is one text) decides.
        held_out: that share.
        length: tokens of a block.
        max_tokens: read of each domain.
        validation_blocks: of each domain, at most.
        options: of `read_domains`.

    Raises:
        EvalDataError: a source cannot be read or has no text.
        TrainDataError: a domain has not one block of text, to train or to validate on.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise TrainDataError("the tokenizer has no end-of-text token to put between documents")
    reading = {"window": length, "max_tokens": max_tokens, **options}
    found = read_domains(sources, tokenizer, **reading)
    if validation:
        kept = {name: list(texts) for name, texts in found.items()}
        other = read_domains(validation, tokenizer, **reading)
    else:
        kept = {n: [t for t in texts if not _is_out(t, held_out)] for n, texts in found.items()}
        other = {n: [t for t in texts if _is_out(t, held_out)] for n, texts in found.items()}
    limit = validation_blocks * length
    return Corpus(
        kept,
        {name: _packed(name, texts, end, length, None) for name, texts in kept.items()},
        {name: _packed(name, texts, end, length, limit) for name, texts in other.items()},
    )


def _is_out(text: Text, share: float) -> bool:
    """By document; windows of a plain text, whose place in the file is 0, go one by one."""
    whole = text.cluster is None or text.cluster.endswith(":0")
    return is_held_out(text.name if whole else str(text.cluster), share)


def _packed(
    name: str, texts: Sequence[Text], end: int, length: int, max_tokens: int | None
) -> Blocks:
    try:
        return pack_ids(([end, *text.ids, end] for text in texts), length, max_tokens=max_tokens)
    except TrainDataError as error:
        raise EvalDataError(f"domain {name!r}: {error}") from None
