import json
from dataclasses import replace

import pytest
import torch

from moegraft.errors import RecipeError, RunError, TrainDataError, TrainingError
from moegraft.nano import pretrain
from moegraft.nano import tokenizer as tokenizers
from moegraft.train.data import demonstration, preference, task
from moegraft.train.dpo import train_dpo
from moegraft.train.freeze import Trainable, freeze
from moegraft.train.grpo import train_grpo
from moegraft.train.grpo_options import GrpoOptions
from moegraft.train.loop import read_metrics
from moegraft.train.options import TrainOptions
from moegraft.train.sft import train_sft

pytestmark = pytest.mark.filterwarnings(
    # transformers and TRL while training; none is ours to mend
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore::UserWarning",
)
OPTIONS = TrainOptions(
    num_steps=2, batch=4, learning_rate=1e-2, warmup_steps=0, log_every=1, use_cpu=True
)
LONGER = replace(OPTIONS, num_steps=4, save_every=2, weight_decay=0.1)
GRPO = GrpoOptions(num_generations=4, max_new_tokens=4)
DEMONSTRATIONS = [demonstration("Is it red?", "yes", [("Is it blue?", "no")])] * 4 + [
    demonstration("Is it blue?", "no")
] * 4
PREFERENCES = [preference("Is it red?", "yes", "no")] * 8
TASKS = [task("Is it red?", "yes_no", "yes"), task("Is it blue?", "tests.own:check", "")]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train(["<|user|>\nIs it red?\n<|assistant|>\nyes"] * 4, vocab_size=300)


def _model(tokenizer):
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2}
    return pretrain.new_model(tokenizer, 0, **sizes)


@pytest.fixture
def model(tokenizer):
    return _model(tokenizer)


@pytest.fixture
def policy(model, tokenizer):
    return model, tokenizer


def _copy(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def _moved(model, before) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def _sft(model, tokenizer, options, **more):
    return train_sft(model, tokenizer, DEMONSTRATIONS, options, **more)


def _dpo(model, tokenizer, options, **more):
    return train_dpo(model, tokenizer, PREFERENCES, options, **more)


def _grpo(model, tokenizer, options, **more):
    tasks = [task(f"Is it {color}?", "yes_no", "yes") for color in ("red", "blue")] * 2
    grpo = replace(GRPO, mini_batches=2, scale_rewards=False, clip_high=0.272, reward=10.0)
    return train_grpo(model, tokenizer, tasks, options, grpo=grpo, **more)


STAGES = {"sft": _sft, "dpo": _dpo, "grpo": _grpo}


def test_supervised_finetuning_lowers_the_loss_of_what_it_imitates(model, tokenizer, tmp_path):
    before = _copy(model)
    first = train_sft(model, tokenizer, DEMONSTRATIONS, OPTIONS, work=tmp_path / "1")
    later = train_sft(model, tokenizer, DEMONSTRATIONS, OPTIONS, work=tmp_path / "2")
    assert _moved(model, before)
    assert later < first


def test_preference_training_moves_towards_the_chosen(model, tokenizer, tmp_path):
    before = _copy(model)
    loss = train_dpo(model, tokenizer, PREFERENCES, OPTIONS, work=tmp_path)
    assert _moved(model, before)
    assert loss < 0.8  # log 2 at the start, plus the routers' load-balancing loss


def test_reinforcement_runs_on_verified_rewards(model, tokenizer, tmp_path):
    records = [task("Is it red?", "yes_no", "yes")] * 2
    reward = train_grpo(model, tokenizer, records, OPTIONS, work=tmp_path, grpo=GRPO)
    assert 0.0 <= reward <= 1.0


class _StopError(Exception):
    pass


def _stop_at(step):
    def on_step(done, total):
        if done == step:
            raise _StopError

    return on_step


def _rows(work):
    return [{k: v for k, v in row.items() if "time" not in k and k != "seconds"} for row in work]


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_training_goes_on_as_if_nothing_had_been(stage, tokenizer, tmp_path):
    train, whole, stopped = STAGES[stage], _model(tokenizer), _model(tokenizer)
    train(whole, tokenizer, LONGER, work=tmp_path / "whole")
    with pytest.raises(_StopError):
        train(stopped, tokenizer, LONGER, work=tmp_path / "stopped", on_step=_stop_at(3))
    resumed, steps = _model(tokenizer), []
    again = {"work": tmp_path / "stopped", "on_step": lambda *now: steps.append(now)}
    train(resumed, tokenizer, LONGER, **again)
    assert steps == [(3, 4), (4, 4)]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))  # noqa: B905
    wanted, got = (_rows(read_metrics(tmp_path / name)) for name in ("whole", "stopped"))
    assert [row["step"] for row in got] == [1, 2, 3, 4]
    assert got == wanted
    assert all(row["tokens"] > 0 for row in got)
    with pytest.raises(RunError, match="holds another training"):
        train(_model(tokenizer), tokenizer, replace(LONGER, seed=1), work=tmp_path / "stopped")


@pytest.mark.parametrize("stage", STAGES)
def test_every_kind_of_training_moves_only_the_chosen_experts(stage, model, tokenizer, tmp_path):
    frozen = freeze(model, Trainable(rows={"*.mlp.experts.*": (1,), "*.mlp.gate.weight": (1,)}))
    before = _copy(model)
    options = replace(OPTIONS, weight_decay=0.1)
    STAGES[stage](model, tokenizer, options, work=tmp_path, prepare=frozen.prepare)
    frozen.check()
    assert _moved(model, before)


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    stage, model, tokenizer, tmp_path
):
    def poison(done, total):
        if done == 2:
            with torch.no_grad():
                model.lm_head.weight.fill_(torch.nan)

    what = "a probability to sample from" if stage == "grpo" else "the loss"
    told = f"step 3: {what} is not a finite number, training stopped; the last .*checkpoint-2"
    with pytest.raises(TrainingError, match=told):
        STAGES[stage](model, tokenizer, LONGER, work=tmp_path, on_step=poison)
    assert [path.parent.name for path in tmp_path.glob("*/COMPLETE")] == ["checkpoint-2"]


def test_verifiers_that_fail_are_counted_and_written_down(model, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def check(response, gold):\n    raise KeyError(gold)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    tasks = [task("Is it red?", "mine:check", "yes")] * 2
    reward = train_grpo(model, tokenizer, tasks, OPTIONS, work=tmp_path / "run", grpo=GRPO)
    assert reward == 0.0
    assert [row["verifier_failures"] for row in read_metrics(tmp_path / "run")] == [4, 4]
    told = (tmp_path / "run" / "verifier_failures.jsonl").read_text().splitlines()
    assert {json.loads(line)["why"] for line in told} == {"mine:check: KeyError: 'yes'"}


def test_the_published_settings_of_reinforcement():
    published = GrpoOptions.as_published()
    assert (published.clip_low, published.clip_high, published.beta) == (0.2, 0.272, 0.0)
    assert not published.scale_rewards and published.mini_batches == 4


@pytest.mark.parametrize(
    ("tasks", "how", "told"),
    [
        ([], {}, "no task to train on"),
        (TASKS[:1], {}, "1 tasks, but one round of sampling takes 2"),
        (TASKS[:1], {"batch": 6}, "batch: 6 completions cannot"),
        (TASKS[:1] * 2, {"save_every": 3}, "save_every: 3 is no multiple of mini_batches"),
        (TASKS, {}, "verifier tests.own:check: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_trained_is_refused(policy, tmp_path, tasks, how, told):
    options, grpo = replace(OPTIONS, **how), replace(GRPO, mini_batches=2)
    with pytest.raises((RecipeError, TrainDataError), match=told):
        train_grpo(*policy, tasks, options, work=tmp_path, grpo=grpo)
    assert not [*tmp_path.iterdir()]


def test_options_out_of_range_are_refused():
    with pytest.raises(RecipeError, match="num_generations: expected at least 2"):
        GrpoOptions(num_generations=1)
    with pytest.raises(RecipeError, match="temperature: expected more than 0"):
        GrpoOptions(temperature=0.0)
