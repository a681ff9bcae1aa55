"""What is asked of a model: items as token ids, and the settings that decide their scores."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moegraft.errors import EvalDataError

Kind = str
"""`generate`: text is written and judged; `choose`: continuations are compared by likelihood;
`command`: a command of the user's scores (`command.py`)."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One log-likelihood to compute: how probable is `continuation` after `context`?"""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Decoding:
    """How text is generated."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    """0 = greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 = all tokens."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise EvalDataError(f"max_gen_toks must be at least 1, got {self.max_new_tokens}")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise EvalDataError(
                f"temperature {self.temperature}, top_p {self.top_p}, top_k {self.top_k}: "
                "expected temperature >= 0, 0 < top_p <= 1, top_k >= 0"
            )


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a task, rendered once for all configurations."""

    hash: str
    """16 hex digits of the content hash of `doc`; conditions of one task share it."""
    doc: Mapping[str, Any]
    prompt: str
    """The rendered context, few-shot examples and chat template included."""
    prompt_ids: tuple[int, ...]
    prompt_hash: str
    """16 hex digits over everything that is fed to the model for this item, as token ids."""
    gold: str
    cluster: str | None = None
    """Hash of what several items share (BoolQ: the passage); None when items stand alone."""
    pairs: tuple[Pair, ...] = ()
    """The requests of a `choose` condition, choices first; for `generate`, empty."""
    gold_pair: Pair | None = None
    """The gold answer, teacher-forced in the format that the task asks for."""
    choices: tuple[str, ...] = ()
    """Texts of the choices, where the task has choices."""
    instances: tuple[Any, ...] = ()
    """lm-eval's requests behind this item."""


@dataclass(frozen=True)
class Condition:
    """One task under one prompting strategy, with its items in canonical order."""

    name: str
    """E.g. `paper_arc_challenge/5-shot`."""
    task: Any
    """The lm-eval task; only `harness` and `judge` look inside."""
    kind: Kind
    items: tuple[Item, ...]
    """In the order of sha256(seed, item hash): a subset of any size is a prefix (invariant 11)."""
    num_total: int
    """Number of items of the whole task."""
    settings: Mapping[str, Any]
    """All that decides a result besides weights and prompts, JSON-ready; part of result keys."""
    primary: str
    """Name of the metric that becomes an item's score."""
    decoding: Decoding | None = None
    repeats: int = 1
    """Generations per item; their scores are averaged."""
    binary: bool = True
    """Scores are 0 or 1, so tests for binary outcomes apply."""
    extract: str | None = None
    """Our extraction (`extract.py`), or None for the task's own filters and metrics."""
    gold_format: str | None = None
    """A pattern that outputs match when they use the format that the gold answer is scored in."""
    notes: tuple[str, ...] = field(default=())
    """Sentences about departures that a report should print."""


def content_hash(content: Any) -> str:
    """16 hex digits of the sha256 of `content` as canonical JSON."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def doc_hashes(docs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Content hashes of `docs`; the n-th copy of an identical document gets a hash of its own.

    Fields whose name starts with an underscore are bookkeeping and do not count.
    """
    seen: dict[str, int] = {}
    hashes = []
    for doc in docs:
        first = content_hash({k: v for k, v in doc.items() if not k.startswith("_")})
        copies = seen[first] = seen.get(first, -1) + 1
        hashes.append(content_hash([first, copies]) if copies else first)
    return hashes


def canonical_order(hashes: Sequence[str], seed: int = 0) -> list[int]:
    """Positions of `hashes` in the order of sha256(seed, hash), the same for every subset."""

    def rank(position: int) -> str:
        return hashlib.sha256(f"{seed}:{hashes[position]}".encode()).hexdigest()

    return sorted(range(len(hashes)), key=rank)


def split_name(name: str) -> tuple[str, str | None]:
    """Cut a condition's name into task and prompting: `a/5-shot` -> (`a`, `5-shot`).

    A path to a YAML file may carry a prompting too: `tasks/mine.yaml/5-shot`.
    """
    head, slash, tail = name.rpartition("/")
    if slash and not tail.endswith((".yaml", ".yml")):
        return head, tail
    return name, None


def shots(prompting: str) -> int | None:
    """Number of examples that a prompting such as `5-shot` asks for, else None."""
    count = prompting.removesuffix("-shot")
    return int(count) if prompting.endswith("-shot") and count.isdecimal() else None
