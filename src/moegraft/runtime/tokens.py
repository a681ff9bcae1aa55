"""Tokenizers of a host and its donors: whether ids mean the same, and where generation stops."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from moegraft.checkpoint import Checkpoint
from moegraft.errors import CheckpointError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")

_PROBES = (
    "Janet's 16 ducks lay 3.5 eggs -- is that true?  Yes/No:\n\n\tAnswer: (A) 1,024",
    "naïve café, 北京, Ελλάδα, emoji 🙂, CamelCase and snake_case\r\n    def f(x): return x**2",
)
"""Texts that tokenizers with one vocabulary but other merges or pre-tokenizers cut differently."""


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase | None:
    """The tokenizer of `checkpoint`, or None when it has none.

    Raises:
        CheckpointError: tokenizer files are there but do not load.
    """
    if not any((checkpoint.path / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(str(checkpoint.path), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"{checkpoint.source}: the tokenizer does not load: {said}; "
            "expected files that AutoTokenizer.from_pretrained accepts"
        ) from error


def eos_ids(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """Ids at which one checkpoint stops: its config's, generation config's and tokenizer's."""
    sizes = checkpoint.family.sizes(checkpoint.config)
    found = [checkpoint.config.get("eos_token_id"), sizes.get("eos_token_id")]
    if (checkpoint.path / "generation_config.json").is_file():
        found.append(GenerationConfig.from_pretrained(str(checkpoint.path)).eos_token_id)
    if tokenizer is not None:
        found.append(tokenizer.eos_token_id)
    flat = [i for ids in found for i in (ids if isinstance(ids, list) else [ids])]
    return frozenset(i for i in flat if isinstance(i, int))


def id_maps_differ(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Whether ordinary text gets different ids from the two tokenizers.

    True when an ordinary token has another id or is missing on one side, or when probe texts are
    cut differently. Added and special tokens do not count: another name for one id, or an extra
    special token, leaves the ids of ordinary text alone.
    """
    special = _added(a) | _added(b)
    ordinary = [
        {token: i for token, i in tokenizer.get_vocab().items() if i not in special}
        for tokenizer in (a, b)
    ]
    return ordinary[0] != ordinary[1] or any(_ids(a, text) != _ids(b, text) for text in _PROBES)


def tokenizer_differences(
    names: tuple[str, str],
    a: PreTrainedTokenizerBase | None,
    b: PreTrainedTokenizerBase | None,
) -> list[str]:
    """What a reader must know before comparing two checkpoints, one sentence each.

    Args:
        names: what to call the two checkpoints, e.g. `("host", "donor")`.
        a: tokenizer of the first, None when it has none.
        b: tokenizer of the second.

    Returns:
        Empty when ids, special tokens and chat template agree.
    """
    first, second = names
    if a is None or b is None:
        lacking = [name for name, t in zip(names, (a, b), strict=True) if t is None]
        return [f"{' and '.join(lacking)} has no tokenizer."] if a is not b else []
    said = _id_sentences(names, a, b)
    for what in ("bos_token", "eos_token", "pad_token", "unk_token"):
        ids = [getattr(t, f"{what}_id", None) for t in (a, b)]
        if ids[0] != ids[1]:
            said.append(f"{what}: {first} uses id {ids[0]}, {second} uses id {ids[1]}.")
    if a.chat_template != b.chat_template:
        have = [n for n, t in zip(names, (a, b), strict=True) if t.chat_template]
        how = "differ" if len(have) == 2 else f"only {have[0]} has one"
        said.append(f"Chat templates: {how}; prompts are rendered with {first}'s.")
    return said


def _id_sentences(
    names: tuple[str, str], a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase
) -> list[str]:
    first, second = names
    maps = [{i: token for token, i in t.get_vocab().items()} for t in (a, b)]
    shared = maps[0].keys() & maps[1].keys()
    renamed = sorted(i for i in shared if maps[0][i] != maps[1][i])
    special = _added(a) | _added(b)
    said = []
    if id_maps_differ(a, b):
        ordinary = [i for i in renamed if i not in special]
        example = _renames(maps, ordinary[:1]) or "the same text is cut differently"
        said.append(
            f"Token ids of ordinary text really differ between {first} and {second} "
            f"({len(ordinary)} ids with another token; {example})."
        )
    names_only = [i for i in renamed if i in special]
    if names_only:
        said.append(
            f"Only the names of special ids differ between {first} and {second}: "
            f"{_renames(maps, names_only[:3])}."
        )
    for name, own, other in ((first, *maps), (second, *reversed(maps))):
        extra = sorted(own.keys() - other.keys())
        if extra:
            listed = ", ".join(f"{i} {own[i]!r}" for i in extra[:3])
            said.append(f"{len(extra)} ids exist only in {name}: {listed}.")
    return said


def _renames(maps: list[dict[int, str]], ids: Iterable[int]) -> str:
    return ", ".join(f"id {i} is {maps[0][i]!r} and {maps[1][i]!r}" for i in islice(ids, 3))


def _added(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    decoder: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return set(decoder) | set(tokenizer.all_special_ids)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
