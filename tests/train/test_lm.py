import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from moegraft.errors import OutputError, RecipeError, RunError, TrainDataError, TrainingError
from moegraft.nano import pretrain
from moegraft.nano import tokenizer as tokenizers
from moegraft.train.lm import train_lm, validation_loss
from moegraft.train.loop import last_checkpoint, read_metrics
from moegraft.train.options import TrainOptions
from moegraft.train.router_loss import RouterLoss
from moegraft.train.text import Blocks, pack

pytestmark = pytest.mark.filterwarnings(
    # transformers and accelerate while training; none is ours to mend
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore::UserWarning",
)
DOCUMENTS = [f"{color} and {color} makes {color}" for color in ("red", "blue", "green", "gray")]
OPTIONS = TrainOptions(
    num_steps=6,
    batch=4,
    learning_rate=1e-2,
    warmup_steps=1,
    scheduler="cosine",
    final_rate=0.1,
    weight_decay=0.1,
    betas=(0.9, 0.95),
    log_every=1,
    save_every=2,
    eval_every=3,
)


@cache
def _tokenizer():
    return tokenizers.train(DOCUMENTS * 4, vocab_size=300)


def _model(seed=0, **sizes):
    small = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_experts": 4}
    return pretrain.new_model(_tokenizer(), seed, **small, **sizes)


@cache
def _data():
    tokenizer = _tokenizer()
    return {
        "one": pack(DOCUMENTS[:2] * 20, tokenizer, 24),
        "two": pack(DOCUMENTS[2:] * 10, tokenizer, 24),
    }


def _train(work, model=None, options=OPTIONS, **more):
    model = _model() if model is None else model
    data = _data()
    result = train_lm(model, data, options, work=work, validation={"held": data["two"]}, **more)
    return model, result


def _rows(work):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(work)]


def _same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(torch.equal(a, b) for (_, a), (_, b) in pairs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted training."""
    work = tmp_path_factory.mktemp("whole")
    model, result = _train(work, weights={"one": 1.0, "two": 1.0})
    return work, model, result


def test_training_lowers_the_loss_and_writes_it_down(whole):
    work, model, result = whole
    rows = _rows(work)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert [row["tokens"] for row in rows] == [step * 4 * 24 for step in range(7)]
    assert [row["step"] for row in rows if "validation" in row] == [0, 3, 6]
    assert result.validation == rows[-1]["validation"]
    assert result.validation["held"] < rows[0]["validation"]["held"] - 0.1
    assert rows[-1]["loss"] < rows[1]["loss"]
    assert result.loss == rows[-1]["loss"]
    assert result.num_tokens == 6 * 4 * 24
    assert sorted(folder.name for folder in work.glob("checkpoint-*")) == [
        "checkpoint-4",
        "checkpoint-6",
    ]
    held = validation_loss(model, _data()["two"])
    assert held == pytest.approx(result.validation["held"], abs=1e-6)


def test_a_rate_that_falls_to_its_last_share(whole):
    rates = [row["learning_rate"] for row in _rows(whole[0])[1:]]
    assert rates[0] == 0.0 and rates[1] == pytest.approx(1e-2)
    assert rates[1:] == sorted(rates[1:], reverse=True) and rates[-1] > 1e-3


def test_an_interrupted_training_goes_on_as_if_nothing_had_been(whole, tmp_path):
    class PowerCutError(Exception):
        pass

    def cut(step, _):
        if step == 5:
            raise PowerCutError

    weights = {"one": 1.0, "two": 1.0}
    with pytest.raises(PowerCutError):
        _train(tmp_path, weights=weights, on_step=cut)
    assert last_checkpoint(tmp_path).name == "checkpoint-4"
    (tmp_path / "checkpoint-4" / "COMPLETE").unlink()  # as if cut while it was written
    model, result = _train(tmp_path, weights=weights)
    assert _same(model, whole[1])
    assert _rows(tmp_path) == _rows(whole[0])
    assert result == whole[2]


def test_a_finished_training_is_loaded_not_repeated(whole):
    seen = []
    model, result = _train(
        whole[0], weights={"one": 1.0, "two": 1.0}, on_step=lambda *step: seen.append(step)
    )
    assert not seen and result == whole[2] and _same(model, whole[1])


SCRIPT = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {tests!r} + "/.."]
from pathlib import Path
import test_lm
def kill(step, _):
    if step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
assert os.environ.get("WORLD_SIZE", "1") == "{world}"
test_lm._train(Path(sys.argv[1]), weights=dict(one=1.0, two=1.0), on_step=kill)
"""
HERE = str(Path(__file__).parent)


def test_a_training_that_was_killed_goes_on_on_the_same_trajectory(whole, tmp_path):
    script = SCRIPT.format(tests=HERE, step=5, world=1)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert read_metrics(tmp_path)[-1]["step"] == 4  # step 5 was not written
    model, _ = _train(tmp_path, weights={"one": 1.0, "two": 1.0})
    assert _same(model, whole[1])
    assert _rows(tmp_path) == _rows(whole[0])


def test_the_data_do_not_depend_on_how_a_batch_is_cut(whole, tmp_path):
    options = replace(OPTIONS, micro_batch=2)
    _train(tmp_path, options=options, weights={"one": 1.0, "two": 1.0})
    for row, other in zip(_rows(tmp_path), _rows(whole[0]), strict=True):
        assert row.get("loss", 0) == pytest.approx(other.get("loss", 0), abs=2e-5)


def test_another_training_in_the_same_folder_is_refused(whole):
    with pytest.raises(RunError, match=r"holds another training \(it differs in start"):
        _train(whole[0], _model(seed=1), weights={"one": 1.0, "two": 1.0})
    with pytest.raises(RunError, match="differs in options"):
        _train(whole[0], options=replace(OPTIONS, seed=5), weights={"one": 1.0, "two": 1.0})


def test_documents_of_one_block_do_not_see_one_another():
    tokenizer, model = _tokenizer(), _model()
    blocks = pack(DOCUMENTS * 2, tokenizer, 48)
    starts = (blocks.positions[0] == 0).nonzero().flatten().tolist()
    total, count = 0.0, 0
    for start, end in zip(starts, [*starts[1:], 48], strict=True):
        if end - start > 1:
            alone = Blocks(blocks.ids[:1, start:end], blocks.positions[:1, start:end])
            total += validation_loss(model, alone) * (end - start - 1)
            count += end - start - 1
    first = Blocks(blocks.ids[:1], blocks.positions[:1])
    assert len(starts) > 2
    assert validation_loss(model, first) == pytest.approx(total / count, abs=1e-6)


def test_router_losses_are_off_unless_asked_for(tmp_path):
    options = replace(OPTIONS, num_steps=2, save_every=0)
    plain = _model()
    plain.config.output_router_logits = True  # what the model's own config asks for
    _train(tmp_path / "plain", plain, options)
    assert plain.config.output_router_logits is True
    _, _ = _train(tmp_path / "same", _model(), options)
    assert _rows(tmp_path / "plain") == _rows(tmp_path / "same")
    balanced, _ = _train(tmp_path / "z", None, options, router=RouterLoss(balance=0.01, z=0.5))
    assert not _same(balanced, plain)
    first, second = _rows(tmp_path / "z")[1], _rows(tmp_path / "plain")[1]
    assert first["router_loss"] > 0.5
    assert first["loss"] == pytest.approx(second["loss"], abs=1e-5)  # told apart from it


def test_prepare_gets_the_model_and_its_optimizer_before_they_are_used(tmp_path):
    seen = []

    def prepare(model, optimizer):
        seen.append(len(optimizer.state))
        model.lm_head.weight.register_hook(torch.zeros_like)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0

    options = replace(OPTIONS, num_steps=4, save_every=2)
    start, model = _model(), _model()
    _train(tmp_path, model, options, prepare=prepare)
    assert seen == [0]
    assert torch.equal(model.lm_head.weight, start.lm_head.weight)
    assert not torch.equal(model.model.embed_tokens.weight, start.model.embed_tokens.weight)


def test_parameters_without_gradient_stay(tmp_path):
    start, model = _model(), _model()
    model.model.embed_tokens.weight.requires_grad_(False)
    _train(tmp_path, model, replace(OPTIONS, num_steps=2, save_every=0))
    assert torch.equal(model.model.embed_tokens.weight, start.model.embed_tokens.weight)
    assert not torch.equal(model.lm_head.weight, start.lm_head.weight)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(tmp_path):
    model = _model()

    def poison(step, _):
        if step == 3:
            with torch.no_grad():
                model.model.norm.weight.fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"step 4: the loss is not .*checkpoint-2"):
        _train(tmp_path, model, on_step=poison)
    kept = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert all(torch.isfinite(s["exp_avg"]).all() for s in kept["state"].values())


def test_a_gradient_that_is_no_number_never_gets_into_the_weights(tmp_path):
    def prepare(model, optimizer):
        model.lm_head.weight.register_hook(lambda grad: grad * float("nan"))

    model, start = _model(), _model()
    with pytest.raises(TrainingError, match=r"step 1: the gradient is not .* no checkpoint yet"):
        _train(tmp_path, model, prepare=prepare)
    assert _same(model, start)


def test_a_weight_that_is_no_number_is_never_saved(tmp_path):
    def poison(_model, optimizer):
        def spoil(optimizer, _args, _kwargs):
            first = optimizer.param_groups[0]["params"][0]
            if optimizer.state[first]["step"] == 4:
                first.data.view(-1)[0] = float("inf")

        optimizer.register_step_post_hook(spoil)

    with pytest.raises(TrainingError, match=r"step 4: a weight is not .*checkpoint-2"):
        _train(tmp_path, _model(), prepare=poison)
    assert not (tmp_path / "checkpoint-4").exists()


@pytest.mark.parametrize("room", [0.5, 1.5], ids=["for no weights", "for no optimizer"])
def test_a_disk_that_is_full_is_one_line_and_the_training_goes_on_later(room, tmp_path):
    whole, _ = _train(tmp_path / "whole")
    limit = int(room * sum(p.numel() * p.element_size() for p in whole.parameters()))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(done, _total):
        if done == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    try:
        with pytest.raises(OutputError, match=r"work: cannot be written \(.*same command goes on"):
            _train(tmp_path / "work", on_step=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert last_checkpoint(tmp_path / "work") == tmp_path / "work" / "checkpoint-2"
    assert _same(_train(tmp_path / "work")[0], whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps: expected more than 0, got 0"),
        ({"warmup_steps": -1}, "warmup_steps: expected 0 or more"),
        ({"scheduler": "cosinus"}, "expected linear, cosine, constant, got 'cosinus'"),
        ({"final_rate": 1.5}, "final_rate: expected a share below 1"),
        ({"scheduler": "constant"}, "final_rate has no effect"),
        ({"learning_rate": float("inf")}, "learning_rate: expected more than 0, got inf"),
        ({"clip": float("nan")}, "clip: expected 0 or more, got nan"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"micro_batch": 0}, "micro_batch: expected at least 1, got 0"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(RecipeError, match=message):
        replace(OPTIONS, **change)


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="micro_batch: 3 does not divide the 4 records"):
        replace(OPTIONS, micro_batch=3).arguments(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match="4 records cannot be divided among 3 processes"):
        OPTIONS.arguments(tmp_path)


def test_weights_of_unknown_sources_are_refused(tmp_path):
    with pytest.raises(TrainDataError, match="expected one above 0 for one, two"):
        _train(tmp_path, weights={"one": 1.0, "three": 1.0})


@pytest.mark.slow
def test_two_processes_train_like_one(whole, tmp_path):
    script = SCRIPT.format(tests=HERE, step=-1, world=2)
    file = tmp_path / "script.py"
    file.write_text(script)
    command = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *command, str(file), str(tmp_path / "work")],
        check=False,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    rows = _rows(tmp_path / "work")
    assert len(rows) == 7
    for row, other in zip(rows, _rows(whole[0]), strict=True):
        assert row.get("loss", 0) == pytest.approx(other.get("loss", 0), abs=2e-5)
        for name, value in row.get("validation", {}).items():
            assert value == pytest.approx(other["validation"][name], abs=2e-5)
