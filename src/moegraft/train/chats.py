"""Chats as packed blocks: one chat never sees another, and the loss is taken on answers only."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from moegraft.errors import TrainDataError
from moegraft.train.data import turns
from moegraft.train.records import read_records
from moegraft.train.text import Blocks

Chat = list[dict[str, Any]]
"""Messages, each with a `role` and a `content`."""

_OPEN_BLOCKS = 64
"""A chat goes into the fullest of so many unfinished blocks that it fits in."""
_log = logging.getLogger(__name__)


def read_chats(source: str | Path, *, split: str = "train") -> Iterator[Chat]:
    """Yield the chats of a JSONL or Parquet file, a folder, or a data set on the Hub.

    A record holds `messages`; or a prompt (`prompt`) and an answer (`completion`, `response` or
    `chosen`), each a text or a list of messages.

    Raises:
        TrainDataError: nothing can be read there, or a record is no chat with an answer.
    """
    for number, record in enumerate(read_records(source, split=split), 1):
        chat = _messages(record)
        if not any(turn["role"] == "assistant" for turn in chat):
            raise TrainDataError(
                f"{source}: record {number} is no chat with an answer; expected `messages` with "
                f"role and content, or `prompt` and `completion`, got keys {', '.join(record)}"
            )
        yield chat


def encode_chat(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> tuple[list[int], list[bool]]:
    """Token ids of a chat under the tokenizer's template, and which of them the assistant wrote.

    What the assistant wrote is what follows the generation prompt, end-of-turn marks included. The
    template stays as it is. Where it renders earlier turns differently once others follow (some
    drop earlier reasoning), only answers that stand in the whole chat as they were given count; an
    opening turn of the assistant's answers nothing.

    Raises:
        TrainDataError: there is no chat template, or it refuses the chat.
    """
    text = _render(tokenizer, chat)
    spans = []
    for place, turn in enumerate(chat):
        if turn["role"] != "assistant" or not place:
            continue
        before = _render(tokenizer, chat[:place], add_generation_prompt=True)
        after = _render(tokenizer, chat[: place + 1])
        if after.startswith(before) and text.startswith(after):
            spans.append((len(before), len(after)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    return ids, [any(first <= start < last for first, last in spans) for start, _ in offsets]


def pack_chats(
    chats: Iterable[Chat],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    max_tokens: int | None = None,
) -> Blocks:
    """Whole chats side by side in blocks of `length`; longer ones are cut, the rest is padding.

    Args:
        chats: from `read_chats`.
        tokenizer: with a chat template.
        length: tokens of a block.
        max_tokens: reading stops there, padding not counted.

    Raises:
        TrainDataError: no chat has an answer within the first `length` tokens, the template refuses
            one, or the tokenizer has no token to pad with.
    """
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if pad is None:
        raise TrainDataError("the tokenizer has neither a padding nor an end-of-text token")
    packed = _Packed(length)
    num_tokens = num_cut = num_empty = 0
    for number, chat in enumerate(chats, 1):
        try:
            ids, answers = encode_chat(tokenizer, chat)
        except TrainDataError as error:
            raise TrainDataError(f"chat {number}: {error}") from None
        num_cut += len(ids) > length
        ids, answers = ids[:length], answers[:length]
        if not any(answers[1:]):
            num_empty += 1
            continue
        packed.add(ids, answers)
        num_tokens += len(ids)
        if max_tokens is not None and num_tokens >= max_tokens:
            break
    if num_cut or num_empty:
        told = "%d chats cut to %d tokens; %d left out, whose answers begin later"
        _log.warning(told, num_cut, length, num_empty)
    if not num_tokens:
        raise TrainDataError(f"no chat has an answer within {length} tokens")
    return packed.blocks(pad)


def pack_answers(examples: Iterable[tuple[list[int], list[bool]]], length: int, pad: int) -> Blocks:
    """Whole examples, each token ids and which of them are the answer, packed as chats are.

    Raises:
        TrainDataError: there is none, or one is longer than a block.
    """
    packed = _Packed(length)
    for ids, answers in examples:
        if len(ids) > length:
            raise TrainDataError(f"an example has {len(ids)} tokens, a block {length}")
        packed.add(ids, answers)
    if not packed.open:
        raise TrainDataError("no example with an answer to train on")
    return packed.blocks(pad)


@dataclass
class _Packed:
    """Blocks that are being filled."""

    length: int
    done: list[list[tuple[list[int], list[bool]]]] = field(default_factory=list)
    open: list[tuple[int, list[tuple[list[int], list[bool]]]]] = field(default_factory=list)
    """With the room that is left in each."""

    def add(self, ids: list[int], answers: list[bool]) -> None:
        fitting = [place for place, (room, _) in enumerate(self.open) if room >= len(ids)]
        if fitting:
            place = min(fitting, key=lambda p: self.open[p][0])
            room, block = self.open.pop(place)
        else:
            room, block = self.length, []
        block.append((ids, answers))
        self.open.append((room - len(ids), block))
        if len(self.open) > _OPEN_BLOCKS:
            fullest = min(range(len(self.open)), key=lambda p: self.open[p][0])
            self.done.append(self.open.pop(fullest)[1])

    def blocks(self, pad: Any) -> Blocks:
        assert isinstance(pad, int), "a tokenizer has an end of text"
        rows = [*self.done, *(block for _, block in self.open)]
        ids = torch.full((len(rows), self.length), pad, dtype=torch.int32)
        positions = torch.zeros((len(rows), self.length), dtype=torch.int32)
        answers = torch.zeros((len(rows), self.length), dtype=torch.bool)
        for row, block in enumerate(rows):
            at = 0
            for chat, marks in block:
                end = at + len(chat)
                ids[row, at:end] = torch.tensor(chat, dtype=torch.int32)
                positions[row, at:end] = torch.arange(len(chat), dtype=torch.int32)
                answers[row, at:end] = torch.tensor(marks)
                at = end
            positions[row, at:] = torch.arange(self.length - at, dtype=torch.int32)
        return Blocks(ids, positions, answers)


def _messages(record: Mapping[str, Any]) -> Chat:
    if "messages" in record:
        return turns("user", record["messages"])
    answers = (record[k] for k in ("completion", "response", "chosen") if k in record)
    return [*turns("user", record.get("prompt")), *turns("assistant", next(answers, None))]


def _render(tokenizer: PreTrainedTokenizerBase, chat: Chat, **how: Any) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, **how))
    except (ValueError, TypeError, TemplateError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainDataError(f"the chat template does not take a chat: {reason}") from None
