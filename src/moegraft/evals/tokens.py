"""Text to token ids, once for all configurations, by the rules of lm-eval's `HFLM`."""

from collections.abc import Sequence
from typing import Any

from moegraft.evals.condition import Pair


def prefix_id(tokenizer: Any) -> int:
    """The token that stands before an empty context: BOS, else EOS."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None else tokenizer.eos_token_id


def encode(tokenizer: Any, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of each text, with special tokens unless the text already begins with BOS.

    Chat templates print the BOS token themselves; adding it again would double it.
    """
    unique = list(dict.fromkeys(texts))
    prefix = prefix_id(tokenizer)
    start = tokenizer.decode([prefix]) if prefix is not None else ""
    found: dict[str, tuple[int, ...]] = {}
    for has_start in (True, False):
        part = [t for t in unique if bool(start and t.startswith(start)) == has_start]
        if part:
            options = {"add_special_tokens": False} if has_start else {}
            encoded = tokenizer(part, **options)["input_ids"]
            found |= {text: tuple(ids) for text, ids in zip(part, encoded, strict=True)}
    return [found[text] for text in texts]


def encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """Token ids of (context, continuation), cut where the context alone would end.

    Spaces at the end of a context move to the continuation, because byte-pair encodings join a
    space with the word after it. An empty context becomes the BOS token.
    """
    moved = [_move_spaces(context, continuation) for context, continuation in pairs]
    contexts = encode(tokenizer, [context for context, _ in moved if context])
    wholes = encode(tokenizer, [context + rest for context, rest in moved if context])
    known = iter(zip(contexts, wholes, strict=True))
    result = []
    for context, rest in moved:
        if context:
            head, whole = next(known)
            result.append(Pair(whole[: len(head)], whole[len(head) :]))
        else:
            result.append(_without_context(tokenizer, rest))
    return result


def encode_answers(
    tokenizer: Any, prompts: Sequence[tuple[str, tuple[int, ...]]], answers: Sequence[str]
) -> list[Pair]:
    """Token ids of answers behind prompts whose ids are given: where generation would begin.

    Unlike in `encode_pairs` nothing moves: the line end of a chat template's last header is part
    of what the model was given, and no part of its answer.

    Args:
        tokenizer: of the prompts.
        prompts: text and ids of each.
        answers: one for each prompt.
    """
    wholes = encode(
        tokenizer, [text + rest for (text, _), rest in zip(prompts, answers, strict=True)]
    )
    result = []
    for (_, ids), whole, rest in zip(prompts, wholes, answers, strict=True):
        fits = whole[: len(ids)] == ids
        alone = () if fits else tuple(tokenizer(rest, add_special_tokens=False)["input_ids"])
        result.append(Pair(ids, whole[len(ids) :] if fits else alone))
    return result


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation


def _without_context(tokenizer: Any, text: str) -> Pair:
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    start = prefix_id(tokenizer)
    return Pair((start,), ids) if not ids or ids[0] != start else Pair(ids[:1], ids[1:])
