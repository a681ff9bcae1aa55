"""A small byte-level tokenizer that knows every string, with OLMoE-Instruct's form of chat."""

from collections.abc import Iterable
from itertools import islice
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from moegraft.nano import worlds

VOCAB_SIZE = 1024
END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
MAX_POSITIONS = 8192
# Words keep the space before them; each digit is a token, so that numbers are read digit by digit.
_PIECES = Regex(r" ?\p{L}+|\d| ?[^\s\p{L}\d]+|\s+")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% set text = '<|' + message['role'] + '|>\\n' + message['content'] %}"
    "{% if message['role'] != 'assistant' %}{{ text + '\\n' }}"
    "{% else %}{{ text + eos_token }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def corpus(num_documents: int = 6000) -> Iterable[str]:
    """The text that the merges are learnt from: pretraining documents and the marks of a chat."""
    rng = Random("moegraft nano tokenizer")
    yield from islice(worlds.documents(rng), num_documents)
    for world, module in worlds.WORLDS.items():
        for _ in range(num_documents // 10):
            item = worlds.training_item(world, rng)
            yield f"<|user|>\n{module.prompt(item)}\n<|assistant|>\n{module.response(item)}"


def train(
    texts: Iterable[str] | None = None, vocab_size: int = VOCAB_SIZE
) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE from `texts` (default: `corpus()`); every byte stays representable."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(_PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus() if texts is None else texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )
