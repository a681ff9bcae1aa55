import pytest
import torch

from moegraft.nano import pretrain
from moegraft.nano import tokenizer as tokenizers
from moegraft.train.data import demonstration, preference, task
from moegraft.train.dpo import train_dpo
from moegraft.train.grpo import train_grpo
from moegraft.train.options import TrainOptions
from moegraft.train.sft import train_sft

pytestmark = pytest.mark.filterwarnings(
    # transformers and TRL while training; none is ours to mend
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore::UserWarning",
)
OPTIONS = TrainOptions(num_steps=2, batch=4, learning_rate=1e-2, warmup_steps=0, log_every=1)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train(["<|user|>\nIs it red?\n<|assistant|>\nyes"] * 4, vocab_size=300)


@pytest.fixture
def model(tokenizer):
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2}
    return pretrain.new_model(tokenizer, 0, **sizes)


def _moved(model, before) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def _copy(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_supervised_finetuning_lowers_the_loss_of_what_it_imitates(model, tokenizer, tmp_path):
    records = [demonstration("Is it red?", "yes", [("Is it blue?", "no")])] * 8
    before = _copy(model)
    first = train_sft(model, tokenizer, records, OPTIONS, work=tmp_path)
    later = train_sft(model, tokenizer, records, OPTIONS, work=tmp_path)
    assert _moved(model, before)
    assert later < first


def test_preference_training_moves_towards_the_chosen(model, tokenizer, tmp_path):
    records = [preference("Is it red?", "yes", "no")] * 8
    before = _copy(model)
    loss = train_dpo(model, tokenizer, records, OPTIONS, work=tmp_path)
    assert _moved(model, before)
    assert loss < 0.8  # log 2 at the start, plus the routers' load-balancing loss


def test_reinforcement_runs_on_verified_rewards(model, tokenizer, tmp_path):
    records = [task("Is it red?", "yes_no", "yes")] * 2
    reward = train_grpo(
        model, tokenizer, records, OPTIONS, work=tmp_path, num_generations=4, max_new_tokens=4
    )
    assert 0.0 <= reward <= 1.0
