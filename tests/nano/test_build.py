from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from moegraft.nano import build as builder
from moegraft.nano.export import export
from moegraft.nano.pretrain import PretrainRecipe
from moegraft.nano.recipes import RECIPES
from moegraft.train.options import TrainOptions

pytestmark = pytest.mark.filterwarnings(
    # transformers and TRL while training; none is ours to mend
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore::UserWarning",
)


def tiny_plan(num_steps: int = 4) -> builder.BuildPlan:
    options = TrainOptions(num_steps=1, batch=4, learning_rate=1e-3, warmup_steps=0, log_every=1)
    recipes = {
        name: replace(recipe, sft=options, dpo=options, rl=options if recipe.rl else None)
        for name, recipe in RECIPES.items()
    }
    return builder.BuildPlan(
        pretrain=PretrainRecipe(num_steps=num_steps, batch=2, length=64, save_every=2),
        recipes=recipes,
        sizes={"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 16},
        num_generations=4,
        max_new_tokens=4,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    work = tmp_path_factory.mktemp("nano")
    return work, builder.build(tiny_plan(), work, parallel=False)


def test_a_tiny_build_runs_every_stage(built):
    work, finals = built
    assert set(finals) == {"base", "sft-dpo", "rlvr"}
    assert all((work / stage / "model.safetensors").is_file() for stage in tiny_plan().stages())
    weights = [load_file(folder / "model.safetensors") for folder in finals.values()]
    assert weights[0].keys() == weights[1].keys() == weights[2].keys()
    router = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(weights[0][router], weights[1][router])
    assert not torch.equal(weights[1][router], weights[2][router])


def test_a_second_build_repeats_nothing(built):
    work, finals = built
    before = {p: p.stat().st_mtime_ns for p in work.rglob("*.safetensors")}
    assert builder.build(tiny_plan(), work, parallel=False) == finals
    assert {p: p.stat().st_mtime_ns for p in work.rglob("*.safetensors")} == before


def test_a_stage_killed_while_writing_is_run_again(built, tmp_path):
    work, _ = built
    (tmp_path / "sft-dpo" / ".sft.part").mkdir(parents=True)
    (tmp_path / "sft-dpo" / ".sft.part" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "base").symlink_to(work / "base")
    builder.run_stage(tiny_plan(), tmp_path, "sft-dpo/sft")
    again = load_file(tmp_path / "sft-dpo" / "sft" / "model.safetensors")
    once = load_file(work / "sft-dpo" / "sft" / "model.safetensors")
    assert all(torch.equal(again[name], once[name]) for name in once)


def test_pretraining_resumes_to_the_same_weights(built, tmp_path, monkeypatch):
    from moegraft.nano import pretrain

    work, _ = built
    whole_batch = pretrain.packed_batch

    def killed(tokenizer, recipe, step, documents):
        if step == 3:
            raise KeyboardInterrupt
        return whole_batch(tokenizer, recipe, step, documents)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "packed_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            builder.run_stage(tiny_plan(), tmp_path, "base")
    assert (tmp_path / "base-state.pt").is_file()
    builder.run_stage(tiny_plan(), tmp_path, "base")
    resumed = load_file(tmp_path / "base" / "model.safetensors")
    once = load_file(work / "base" / "model.safetensors")
    assert all(torch.equal(resumed[name], once[name]) for name in once)


def test_an_export_is_a_small_checkpoint_with_a_card(built, tmp_path):
    from huggingface_hub import ModelCard
    from transformers import AutoModelForCausalLM

    _, finals = built
    export(finals["rlvr"], tmp_path / "rlvr", "rlvr", RECIPES)
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "rlvr", output_loading_info=True, dtype="auto"
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    assert model.config.output_router_logits is False
    assert "verifiable rewards" in ModelCard.load(tmp_path / "rlvr" / "README.md").text


def test_the_command_writes_the_worlds(tmp_path):
    builder.main(["--worlds", str(tmp_path / "items")])
    assert sorted(path.name for path in (tmp_path / "items").iterdir()) == [
        "domains",
        "math.jsonl",
        "reading.jsonl",
        "science.jsonl",
    ]


def test_an_unknown_stage_is_refused(capsys):
    with pytest.raises(SystemExit):
        builder.main(["--stage", "rlvr/nothing"])
    assert "no stage rlvr/nothing; the stages are base, sft-dpo/sft" in capsys.readouterr().err
