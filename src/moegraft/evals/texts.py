"""Texts for statistics of a model: files, JSON lines, the Hub and tasks as ids by domain."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from moegraft.errors import EvalDataError, UnknownTaskError
from moegraft.evals.condition import Condition
from moegraft.evals.tokens import encode

_CHARACTERS_PER_TOKEN = 16
"""No more than this is read of a file for every token that is wanted."""
_JSON_LINES = (".jsonl", ".json")
_PLAIN = (".txt", ".md", ".text")
HUB = "hub:"
"""Before the name of a data set on the Hub, which looks like a task's otherwise."""


@dataclass(frozen=True, slots=True)
class Text:
    """Token ids that a model reads, and which of them count for what."""

    domain: str
    name: str
    """Pairs the same text between configurations: an item's hash, or a place in a file."""
    ids: tuple[int, ...]
    answer: int
    """The first token whose probability makes the loss; all later ones count too."""
    first: int = 0
    """The first token whose routing counts: behind what this text shares with earlier ones."""
    cluster: str | None = None
    """What several texts share; they are not independent."""

    def __post_init__(self) -> None:
        assert 0 < self.answer < len(self.ids), "a text needs a token to predict"


def condition_texts(condition: Condition, limit: int | None = None) -> list[Text]:
    """The prompts of a condition with the gold answer behind them, the first `limit` items.

    What all prompts begin with (few-shot examples, the head of a chat) counts once, with the first
    text, so that it does not outweigh everything else.

    Raises:
        EvalDataError: no item has a gold answer that a prompt can be continued with.
    """
    texts = []
    for item in condition.items[:limit]:
        pair = item.gold_pair
        if pair is None or not pair.continuation or not pair.context:
            continue
        ids = (*pair.context, *pair.continuation)
        cluster = item.cluster or item.hash
        texts.append(Text(condition.name, item.hash, ids, len(pair.context), 0, cluster))
    if not texts:
        raise EvalDataError(f"{condition.name}: no item has a gold answer to read after its prompt")
    shared = _shared_length([text.ids for text in texts])
    return [texts[0], *(replace(text, first=shared) for text in texts[1:])]


def file_texts(
    path: Path,
    tokenizer: Any,
    *,
    domain: str | None = None,
    window: int = 1024,
    max_tokens: int = 100_000,
    fields: Sequence[str] = ("text",),
) -> list[Text]:
    """The beginning of a file, cut into windows.

    Args:
        path: `.jsonl` with one record per line, or plain text, which is one long text.
        tokenizer: of the model that shall read it.
        domain: what to call it; default: the file's name without its ending.
        window: the longest text in tokens; longer ones become several.
        max_tokens: reading stops there.
        fields: of a record, joined by a newline.

    Raises:
        EvalDataError: the file cannot be read, a record lacks a field, or there is no text.
    """
    documents = _read(path, max_tokens * _CHARACTERS_PER_TOKEN, fields)
    found = _windows(domain or path.stem, documents, tokenizer, window, max_tokens)
    if not found:
        raise EvalDataError(f"{path}: no text found, expected at least two tokens")
    return found


def hub_texts(
    source: str,
    tokenizer: Any,
    *,
    domain: str | None = None,
    window: int = 1024,
    max_tokens: int = 100_000,
    fields: Sequence[str] = ("text",),
) -> list[Text]:
    """The beginning of a data set on the Hub, cut into windows; no more of it is downloaded.

    Args:
        source: `hub:OWNER/NAME` or `hub:OWNER/NAME:CONFIG`, of which the split `train` is read,
            or the first one where there is none of that name.
        tokenizer: of the model that shall read it.
        domain: what to call it; default: NAME.
        window: as in `file_texts`.
        max_tokens: reading stops there.
        fields: of a record, joined by a newline.

    Raises:
        EvalDataError: the data set cannot be read, a record lacks a field, or there is no text.
    """
    name, _, config = source.removeprefix(HUB).partition(":")
    records = enumerate(_streamed(source, name, config or None), 1)
    documents = ((n, _joined(f"{source}: record {n}", one, fields)) for n, one in records)
    name = domain or name.rpartition("/")[2]
    found = _windows(name, documents, tokenizer, window, max_tokens)
    if not found:
        raise EvalDataError(f"{source}: no text found, expected at least two tokens")
    return found


def _windows(
    domain: str, documents: Iterable[tuple[int, str]], tokenizer: Any, window: int, max_tokens: int
) -> list[Text]:
    found: list[Text] = []
    left = max_tokens
    for number, text in documents:
        (ids,) = encode(tokenizer, [text])
        for start in range(0, len(ids), window):
            part = ids[start : start + min(window, left)]
            if len(part) > 1:
                name = f"{domain}:{number}"
                found.append(Text(domain, f"{name}:{start}", part, 1, 0, name))
            left -= len(part)
            if left < 2:
                return found
    return found


def read_domains(
    sources: Sequence[str],
    tokenizer: Any,
    *,
    window: int = 1024,
    max_tokens: int = 100_000,
    limit: int = 500,
    fields: Sequence[str] = ("text",),
    **options: Any,
) -> dict[str, list[Text]]:
    """Texts by domain, from files, folders (each file a domain), the Hub and tasks.

    Args:
        sources: `PATH`, `TASK` or `hub:OWNER/NAME[:CONFIG]`, or `NAME=` and one of them, where the
            name is the domain's.
        tokenizer: of the model that shall read them.
        window: the longest text of a file, in tokens; prompts are never cut.
        max_tokens: of one domain.
        limit: items of a task.
        fields: of the records of a `.jsonl` file.
        options: passed to `load_condition` for tasks.

    Raises:
        EvalDataError: nothing stands under a source, or two domains have one name.
    """
    from moegraft.evals.harness import load_condition

    found: dict[str, list[Text]] = {}
    for source in sources:
        name, spec = _split_source(source)
        if spec.startswith(HUB):
            more = {"window": window, "max_tokens": max_tokens, "fields": fields}
            texts = hub_texts(spec, tokenizer, domain=name, **more)
            _add_domain(found, texts[0].domain, texts)
            continue
        files = text_files(spec)
        for path in files:
            many = name is not None and len(files) > 1
            domain = f"{name}/{path.stem}" if many else name or path.stem
            texts = file_texts(
                path,
                tokenizer,
                domain=domain,
                window=window,
                max_tokens=max_tokens,
                fields=fields,
            )
            _add_domain(found, domain, texts)
        if not files:
            _refuse_missing_path(spec)
            try:
                condition = load_condition(spec, tokenizer=tokenizer, limit=limit, **options)
            except UnknownTaskError as error:
                raise EvalDataError(f"{spec}: no such file or folder, and {error}") from None
            texts = _within(condition_texts(condition), max_tokens)
            _add_domain(found, name or condition.name, texts)
    return found


def text_files(source: str) -> list[Path]:
    """The files that a folder or path stands for; none when no such path exists.

    Raises:
        EvalDataError: a folder without text files.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        return [path] if path.is_file() else []
    files = sorted(p for p in path.iterdir() if p.suffix in (*_JSON_LINES, *_PLAIN))
    if not files:
        endings = ", ".join((*_JSON_LINES, *_PLAIN))
        raise EvalDataError(f"{source}: the folder holds no text files (expected {endings})")
    return files


def _split_source(source: str) -> tuple[str | None, str]:
    """`NAME=SPEC` in two; a name has no slash, so that a path with `=` stays whole.

    Raises EvalDataError when nothing stands there.
    """
    name, equals, spec = source.partition("=")
    name, spec = (name, spec) if equals and name and "/" not in name else (None, source)
    if not spec.removeprefix(HUB).strip():
        raise EvalDataError(
            f"{source!r}: names no texts; expected a path, a task or hub:OWNER/NAME"
        )
    return name, spec


def _refuse_missing_path(spec: str) -> None:
    if Path(spec).suffix in (*_JSON_LINES, *_PLAIN) or spec.startswith(("/", ".", "~")):
        raise EvalDataError(f"{spec}: no such file or folder")


def _add_domain(found: dict[str, list[Text]], domain: str, texts: list[Text]) -> None:
    if domain in found:
        raise EvalDataError(f"two sources are called {domain!r}; name one with NAME=SOURCE")
    found[domain] = [replace(text, domain=domain) for text in texts]


def _within(texts: list[Text], max_tokens: int) -> list[Text]:
    """The first texts, up to about `max_tokens` tokens that count; at least one."""
    ends = accumulate(len(text.ids) - text.first for text in texts)
    return [
        text
        for place, (text, end) in enumerate(zip(texts, ends, strict=True))
        if not place or end <= max_tokens
    ]


def _read(path: Path, max_chars: int, fields: Sequence[str]) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            if path.suffix not in _JSON_LINES:
                yield 0, file.read(max_chars)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _record(path, number, line, fields)
    except (OSError, UnicodeDecodeError) as error:
        raise EvalDataError(f"{path}: cannot be read: {error}") from None


def _record(path: Path, number: int, line: str, fields: Sequence[str]) -> str:
    try:
        record = json.loads(line)
    except ValueError:
        raise EvalDataError(f"{path}:{number}: expected one JSON record per line") from None
    return _joined(f"{path}:{number}", record, fields)


def _joined(where: str, record: Any, fields: Sequence[str]) -> str:
    if not isinstance(record, dict):
        raise EvalDataError(f"{where}: expected a record, got {type(record).__name__}")
    missing = [field for field in fields if not isinstance(record.get(field), str)]
    if missing:
        known = ", ".join(key for key, value in record.items() if isinstance(value, str)) or "none"
        raise EvalDataError(
            f"{where}: no text in field {missing[0]!r}; fields with text: {known} "
            "(choose with --field)"
        )
    return "\n".join(record[field] for field in fields)


def _streamed(source: str, name: str, config: str | None) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        splits: Any = load_dataset(name, config, streaming=True)
        yield from splits["train" if "train" in splits else next(iter(splits))]
    except (OSError, ValueError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EvalDataError(f"{source}: cannot be read: {reason}") from None


def _shared_length(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all sequences begin with; less than the shortest."""
    low, high = min(sequences), max(sequences)
    longest = min(map(len, sequences)) - 1
    pairs = zip(low, high, strict=False)
    return min(next((i for i, (a, b) in enumerate(pairs) if a != b), longest), longest)
