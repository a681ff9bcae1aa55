from pathlib import Path

import pytest
import torch

import moegraft
from moegraft.evals.extract import extract, same_answer
from moegraft.nano import domains, worlds
from moegraft.nano.recipes import VERIFIER_OF

FOLDER = Path(moegraft.__file__).parent / "nano" / "checkpoints"
NAMES = ("base", "sft-dpo", "rlvr")


@pytest.mark.parametrize("name", NAMES)
def test_a_packaged_checkpoint_loads_whole(name):
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        FOLDER / name, output_loading_info=True, dtype="auto"
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.model_type == "olmoe"
    assert model.dtype == torch.bfloat16
    assert model.config.max_position_embeddings == 8192
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 2e6


def test_the_package_holds_at_most_twelve_megabytes_of_checkpoints():
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) <= 12e6


def test_all_three_share_one_tokenizer():
    files = [(FOLDER / name / "tokenizer.json").read_bytes() for name in NAMES]
    assert files[0] == files[1] == files[2]


def answers(name, items, world):
    """What a packaged checkpoint says, greedily, to the prompts of `items`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER / name)
    model = AutoModelForCausalLM.from_pretrained(FOLDER / name, dtype="float32")
    prompt = worlds.WORLDS[world].prompt
    batch = tokenizer.apply_chat_template(
        [[{"role": "user", "content": prompt(item)}] for item in items],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=80
    )
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("name", ("sft-dpo", "rlvr"))
def test_a_post_trained_checkpoint_answers_and_stops(name):
    said = answers(name, worlds.test_items("reading")[:8], "reading")
    assert all(text.endswith((", so yes.", ", so no.")) for text in said)


@pytest.mark.parametrize(("name", "world"), [("rlvr", "math"), ("sft-dpo", "science")])
def test_each_checkpoint_has_its_skill(name, world):
    items = worlds.test_items(world)[:40]
    kind = VERIFIER_OF[world]
    right = [
        same_answer(kind, extract(kind, text), [worlds.gold(world, item)])
        for item, text in zip(items, answers(name, items, world), strict=True)
    ]
    assert sum(right) >= 22  # far above chance: 10 of 40 in science, none in math


def test_the_dense_pair_loads_whole_and_shares_a_tokenizer():
    from transformers import AutoModelForCausalLM

    for name in ("dense-base", "dense"):
        model, info = AutoModelForCausalLM.from_pretrained(
            FOLDER / name, output_loading_info=True, dtype="auto"
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert model.config.model_type == "olmo2"
        assert model.dtype == torch.bfloat16
    files = [(FOLDER / name / "tokenizer.json").read_bytes() for name in ("dense-base", "dense")]
    assert files[0] == files[1]


def test_the_dense_anchor_knows_facts_and_writes_no_programs():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "dense")
    model = AutoModelForCausalLM.from_pretrained(FOLDER / "dense", dtype="float32")
    right = {}
    for kind in ("science", "code"):
        items, world = domains.test_items(kind, 40), domains.KINDS[kind]
        batch = tokenizer.apply_chat_template(
            [[{"role": "user", "content": world.prompt(item)}] for item in items],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )
        out = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=20
        )
        said = tokenizer.batch_decode(
            out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right[kind] = sum(world.check(i, text) for i, text in zip(items, said, strict=True))
    assert right["science"] >= 20  # chance is 10
    assert right["code"] == 0
