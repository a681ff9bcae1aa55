"""Hosts and tokenizers for the runtime's tests."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moegraft.runtime import Host

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """A prompt of ids that every tiny vocabulary has."""
    return torch.tensor([[5, 9, 3, 44, 17, 60, 2, 31]])


@pytest.fixture(scope="session")
def host(olmoe_pair) -> Host:
    """The tiny pair, both in memory; every test leaves it as it was."""
    return Host.load(str(olmoe_pair[0]), {"donor": str(olmoe_pair[1])}, device="cpu")


@pytest.fixture(scope="session")
def make_tokenizer():
    """Builder: a word-level tokenizer with `words` and the name of its end token."""

    def build(path, *, words=("yes", "no"), eos="<|endoftext|>", eos_id=0, template=TEMPLATE):
        vocab = dict.fromkeys([eos] if eos_id == 0 else [])
        vocab |= dict.fromkeys(["[UNK]", *words])
        if eos_id:
            vocab[eos] = None
        table = {token: i for i, token in enumerate(vocab)}
        inner = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        made = PreTrainedTokenizerFast(
            tokenizer_object=inner, eos_token=eos, bos_token=eos, unk_token="[UNK]"
        )
        made.chat_template = template
        made.save_pretrained(path)
        return made

    return build
