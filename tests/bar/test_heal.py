import json

import pytest
import torch

from moegraft.bar.heal import HealRecipe, heal_model
from moegraft.bar.tune import Tuning
from moegraft.checkpoint import open_checkpoint
from moegraft.config import parse_recipe
from moegraft.errors import BranchError, OutputError, RecipeError
from moegraft.transfer import Selection, TransferRecipe, apply_plan, plan_transfer
from tiny_bar import card_of
from tiny_families import build_tiny, stored_tensors
from tiny_sweep import CHAT, byte_tokenizer


@pytest.fixture(scope="module")
def composed(tmp_path_factory, chat_pair):
    """A host with the donor's experts, whose router has never seen them."""
    host, donor = map(str, chat_pair)
    recipe = TransferRecipe(host, {"d": donor}, (Selection(("experts",)),))
    plan = plan_transfer(recipe, open_checkpoint(host), {"d": open_checkpoint(donor)})
    return apply_plan(plan, tmp_path_factory.mktemp("composed") / "c")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for place in range(8):
        (folder / f"{place}.txt").write_text(
            f"{place}: " + "the rain fell over seven hills and nobody saw. " * 6
        )
    return {"rain": str(folder)}


def run(model, data, out, **changes):
    tuning = Tuning(epochs=2, learning_rate=0.05, batch=4)
    settings = {"held_out": 0.2, "length": 32, "tuning": tuning} | changes
    return heal_model(HealRecipe(str(model), data, **settings), out)


@pytest.mark.parametrize("train", [("router",), ("router", "norm", "qk_norm")])
def test_only_what_is_trained_moves_and_the_loss_falls(train, composed, texts, tmp_path):
    found = run(composed, texts, tmp_path / "h", train=train)
    before, after = stored_tensors(composed), stored_tensors(tmp_path / "h")
    place = open_checkpoint(composed).family.place
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == (place(name).component not in train), name
    assert found["loss_after"]["rain"] < found["loss_before"]["rain"] - 0.01
    assert json.loads((tmp_path / "h" / "heal.json").read_text()) == found
    assert (tmp_path / "h" / "composed-provenance.json").is_file()
    assert found["stage"]["stage"] == "+".join(train)
    assert (
        f"trained further by moegraft: {', '.join(train)} ("
        in card_of(tmp_path / "h", ["host", "donor"], "merge").text
    )


def test_half_precision_is_measured_as_it_is_stored(composed, texts, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(composed, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "half")
    found = run(tmp_path / "half", texts, tmp_path / "h")
    again = run(tmp_path / "h", texts, tmp_path / "again", tuning=Tuning(epochs=1, batch=8))
    assert again["loss_before"] == found["loss_after"]
    routers = [t for n, t in stored_tensors(tmp_path / "h").items() if n.endswith("gate.weight")]
    assert all(router.dtype == torch.bfloat16 for router in routers)


def test_what_cannot_be_healed_is_refused(texts, tmp_path):
    build_tiny("olmo2", vocab_size=258).save_pretrained(tmp_path / "dense")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    with pytest.raises(BranchError, match="has no tokenizer"):
        run(tmp_path / "dense", texts, tmp_path / "h")
    tokenizer.save_pretrained(tmp_path / "dense")
    with pytest.raises(BranchError, match="is a dense model, which has no routers to train"):
        run(tmp_path / "dense", texts, tmp_path / "h")
    with pytest.raises(RecipeError, match="train: expected some of router, norm, qk_norm, got"):
        parse_recipe({"model": "m", "data": texts, "train": ["experts"]}, HealRecipe, where="heal")
    assert not (tmp_path / "h").exists()


def test_an_output_that_cannot_be_made_is_refused_before_the_training(composed, texts, tmp_path):
    seen = []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    for out, message in (
        (tmp_path / "full", "exists and is not empty"),
        (composed / "inside", "lies inside the input"),
        (composed, "the output is the input"),
    ):
        with pytest.raises(OutputError, match=message):
            heal_model(
                HealRecipe(str(composed), texts, held_out=0.2, length=32),
                out,
                on_step=lambda *now: seen.append(now),
            )
    assert not seen and not (tmp_path / "full.work").exists()
