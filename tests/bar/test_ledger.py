import json
import shutil

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moegraft.bar.branches import open_branch
from moegraft.bar.cost import sizes_of
from moegraft.bar.ledger import count_costs
from moegraft.bar.opened import expert_rows, trainable
from moegraft.checkpoint import open_checkpoint
from moegraft.errors import BranchError, RecipeError
from moegraft.report.ledger_figure import write_ledger_figure
from moegraft.runtime.load import from_pretrained
from moegraft.train.freeze import Trainable, freeze
from moegraft.train.lowrank import add_low_rank


@pytest.fixture
def built(merged, tmp_path):
    """A copy of the merged model whose record can be rewritten: `built(stages, router)`."""
    for name in ("anchor", "math", "code", "merged"):
        shutil.copytree(merged.parent / name, tmp_path / name)

    def write(*stages, router=None):
        file = tmp_path / "merged" / "merge.json"
        content = json.loads(file.read_text())
        for expert, own in zip(content["experts"], stages, strict=True):
            expert["stages"] = own
        content["stages"] = [] if router is None else [router]
        file.write_text(json.dumps(content))
        return tmp_path / "merged"

    return write


def sft(tokens, **more):
    return {"stage": "sft", "tokens": tokens, "seconds": 7200, "trained_numbers": 1000, **more}


ROUTER = {"stage": "route", "tokens": 100, "seconds": 36, "flops": 12345.0}


def test_every_recorded_stage_is_counted(built):
    folder = built([sft(1000), sft(500)], [sft(2000, devices=4)], router=ROUTER)
    found = count_costs(folder)
    sizes = sizes_of(open_checkpoint(folder.parent / "anchor"))
    branch = sizes.cost(2, 2).flops_per_token
    assert found["entries"][0]["flops"] == (2 * branch + 2 * 2 * sizes.expert) * 1000
    assert found["entries"][-1]["flops"] == 12345.0
    assert found["spent"]["tokens"] == 3600
    assert found["spent"]["device_hours"] == pytest.approx(2 + 2 + 8 + 0.01)
    assert found["spent"]["flops"] == sum(entry["flops"] for entry in found["entries"])


@pytest.mark.parametrize(("level", "lora"), [("expert", None), ("vocabulary", None), ("expert", 2)])
def test_the_flops_of_a_training_step_are_those_that_are_run(level, lora, merged, built):
    branch = open_branch(merged.parent / "math-start")
    model = from_pretrained(branch.checkpoint, torch.float32, "eager", torch.device("cpu"))
    opened = trainable(model, branch, level)
    rows = expert_rows(opened, branch) if lora else {}
    factors = add_low_rank(model, rows, lora or 1).names
    others = {name: own for name, own in opened.rows.items() if name not in rows}
    num_open = freeze(model, Trainable((*opened.whole, *factors), others)).num_open()
    ids = torch.arange(64)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    spent = counter.get_total_flops()
    stage = sft(64, trained_numbers=num_open, lora=lora)
    counted = count_costs(built([stage], [sft(1)], router=ROUTER))["entries"][0]["flops"]
    # Not run is the gradient of what the first layer reads; not counted are the factors' products.
    assert 0.8 < spent / counted < 1.02


def test_retraining_grows_with_the_square_and_branches_linearly(built):
    folder = built([sft(1000)], [sft(1000)], router=ROUTER)
    found = count_costs(folder)
    first, second = found["growth"]
    dense = 3 * sizes_of(open_checkpoint(folder.parent / "anchor")).cost(1, 1).flops_per_token
    assert first["retraining"] == dense * 1000
    assert second["retraining"] == dense * (1000 + 2000)
    assert second["bar_branches"] == 2 * first["bar_branches"]
    assert second["bar"] == second["bar_branches"] + second["bar_routers"]
    three = sizes_of(open_checkpoint(folder.parent / "anchor")).cost(3, 3).flops_per_token
    assert second["last_router"] == 2 * three * 100
    assert found["update"][0]["bar"] == first["bar_branches"] + second["last_router"]
    assert found["update"][0]["retraining"] == dense * 2000


def test_the_general_mix_is_counted_once_in_a_retraining(built):
    data = [{"part": "domain", "tokens": 300}, {"part": "general", "tokens": 100}]
    found = count_costs(built([sft(1000, data=data)], [sft(1000, data=data)], router=ROUTER))
    dense = found["growth"][0]["retraining"] / 1000
    assert found["growth"][1]["last_retraining"] == pytest.approx(dense * (750 + 750 + 250))


def test_a_share_that_was_set_counts_and_records_stand_for_tokens(built):
    data = [{"part": "domain", "tokens": 300}, {"part": "general", "tokens": 100}]
    pairs = [{"part": "domain", "records": 30}, {"part": "general", "records": 10}]
    stages = [sft(1000, data=data, general_share=0.6)], [sft(1000, data=pairs)]
    found = count_costs(built(*stages, router=ROUTER))
    dense = found["growth"][0]["retraining"] / 1000
    assert found["growth"][1]["last_retraining"] == pytest.approx(dense * (400 + 750 + 600))


def test_reinforcement_learning_pays_for_its_samples(built):
    plain, rl = (
        count_costs(built([{**sft(1000), "stage": stage}], [sft(1)], router=ROUTER))
        for stage in ("sft", "rl")
    )
    assert rl["entries"][0]["flops"] > plain["entries"][0]["flops"]
    assert rl["growth"][0]["retraining"] == pytest.approx(plain["growth"][0]["retraining"] * 4 / 3)


def test_what_is_assumed_is_listed(built):
    found = count_costs(built([{"stage": "elsewhere", "tokens": 0}], [sft(1000)]), router_share=0.1)
    told = " ".join(found["assumed"])
    assert "stage 'elsewhere' of 'math' records no tokens and counts as nothing" in told
    assert "no router training is recorded: 10% of all tokens, twice" in told
    assert "the general mix, which every branch repeats" in told
    assert found["spent"]["untimed_stages"] == 1
    serving = found["serving"]
    assert serving["extra_flops_per_token"] > 0
    with pytest.raises(BranchError, match="no stage is recorded for any of its branches"):
        count_costs(built([], []))
    with pytest.raises(RecipeError, match="router_share: expected above 0 and up to 1, got -1"):
        count_costs(built([], []), router_share=-1.0)
    with pytest.raises(BranchError, match=r"merge\.json: stages\.0\.seconds: got 'long'"):
        count_costs(built([], [], router={**ROUTER, "seconds": "long"}))
    with pytest.raises(
        BranchError, match=r"merge\.json: experts\.1: stages\.0: expected a mapping"
    ):
        count_costs(built([], [{"stage": "sft"}]))


def test_the_figure_is_drawn_the_same_twice(built, tmp_path):
    found = count_costs(built([sft(1000)], [sft(1000)], router=ROUTER))
    written = write_ledger_figure(found, tmp_path / "a")
    assert sorted(written) == ["cost-dark.svg", "cost.png", "cost.svg"]
    again = write_ledger_figure(found, tmp_path / "b")
    assert all(written[name].read_bytes() == again[name].read_bytes() for name in written)
