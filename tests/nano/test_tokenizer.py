import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moegraft.nano import tokenizer as tokenizers


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["Tom has 12 apples.\n<|user|>\nQuestion: is it red?\n<|assistant|>\nyes"] * 4
    return tokenizers.train(texts, vocab_size=320)


def test_any_text_survives_a_round_trip(tokenizer):
    @settings(max_examples=200, deadline=None, database=None)
    @given(st.text())
    def check(text):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text

    check()


def test_every_byte_is_a_token(tokenizer):
    assert len(tokenizer) >= 258
    text = "".join(chr(code) for code in range(1, 0x3000) if not 0xD800 <= code < 0xE000)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert tokenizer.unk_token is None


def test_digits_stand_alone(tokenizer):
    assert tokenizer.tokenize("1234")[0] == "1"
    assert len(tokenizer.tokenize("1234")) == 4


def test_a_chat_has_the_form_of_olmoe_instruct(tokenizer):
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "bye"},
    ]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|endoftext|><|user|>\nhi\n<|assistant|>\nhello<|endoftext|>\n"
        "<|user|>\nbye\n<|assistant|>\n"
    )
    assert tokenizer.apply_chat_template(chat[:2], tokenize=False) == (
        "<|endoftext|><|user|>\nhi\n<|assistant|>\nhello<|endoftext|>"
    )
    system = [{"role": "system", "content": "be kind"}, chat[0]]
    assert tokenizer.apply_chat_template(system, tokenize=False) == (
        "<|endoftext|><|system|>\nbe kind\n<|user|>\nhi\n"
    )


def test_a_saved_tokenizer_loads_as_the_same(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "Tom has 12 apples.\nÄ 日本 \x00"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.chat_template == tokenizer.chat_template
    assert again.model_max_length == 8192
    assert (again.eos_token, again.bos_token, again.pad_token) == (
        "<|endoftext|>",
        "<|endoftext|>",
        "<|padding|>",
    )
