import json
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file, save_file

from moegraft.checkpoint import open_checkpoint
from moegraft.errors import CheckpointError, IncompatibleError, OutputError, RecipeError
from moegraft.xpert.decompose import Decomposition
from moegraft.xpert.experts import donor_fingerprint, find_shared, load_experts, moe_layers
from moegraft.xpert.knowledge import decompose_experts, open_knowledge
from moegraft.xpert.ranks import FULL, parse_ranks
from tiny_families import build_tiny


def selection_for(donor, experts=(3, 1), **changes):
    chosen = [{"expert": expert} for expert in experts]
    return {
        "source": donor.source,
        "fingerprint": donor_fingerprint(donor),
        "score": "a_minus_c",
        "num_best": len(experts),
        "num_experts": donor.num_experts,
        "domains": ["a", "b"],
        "num_tokens": [5, 5],
        "layers": [{"layer": layer, "chosen": chosen} for layer in moe_layers(donor)],
    } | changes


def saved(tmp_path, family, capsys):
    folder = tmp_path / family
    build_tiny(family).save_pretrained(folder)
    capsys.readouterr()
    return open_checkpoint(str(folder))


def test_knowledge_is_saved_with_its_card_and_read_back(olmoe_pair, tmp_path):
    donor = open_checkpoint(str(olmoe_pair[0]))
    steps = []
    made = decompose_experts(
        donor,
        selection_for(donor),
        Decomposition(ranks=FULL),
        tmp_path / "know",
        on_step=lambda *step: steps.append(step),
    )
    assert steps == [(1, 2), (2, 2)]
    opened = open_knowledge(tmp_path / "know")
    assert opened.about == json.loads(json.dumps(made.about))
    assert opened.layers == (0, 1)
    for layer in opened.layers:
        experts = load_experts(donor, layer, (3, 1))
        for name, found in opened.layer(layer).items():
            assert torch.allclose(found.matrix(), experts.matrix(name).mean(0), atol=1e-5)
    card = ModelCard.load(tmp_path / "know" / "README.md")
    assert card.data.library_name == "moegraft"
    assert card.data.base_model == ["host"]
    assert {"xpert", "mixture-of-experts"} <= set(card.data.tags)
    validate_repo_id(card.data.base_model[0])
    assert "| 0 | 3, 1 |" in card.text
    assert str(tmp_path) not in str(card) + (tmp_path / "know" / "knowledge.json").read_text()


def test_factors_are_smaller_than_the_matrix_and_may_be_bfloat16(olmoe_pair, tmp_path):
    donor = open_checkpoint(str(olmoe_pair[0]))
    ranks = parse_ranks("4,4,2")
    how = Decomposition(ranks=ranks)
    decompose_experts(donor, selection_for(donor), how, tmp_path / "k", dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "k" / "layer-000.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items() if "gate" in name} == {
        "0.gate.core": (4, 4),
        "0.gate.rows": (16, 4),
        "0.gate.columns": (32, 4),
    }
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_groups_are_decomposed_apart(olmoe_pair, tmp_path):
    donor = open_checkpoint(str(olmoe_pair[0]))
    chosen = selection_for(donor, (3, 1, 0, 7))
    made = decompose_experts(donor, chosen, Decomposition("mean", num_groups=2), tmp_path / "k")
    assert made.num_groups == 2
    for group, experts in enumerate([(3, 1), (0, 7)]):
        assert made.about["layers"][1]["groups"][group]["experts"] == list(experts)
        plain = load_experts(donor, 1, experts).up.mean(0)
        assert torch.equal(made.layer(1, group)["up"].matrix(), plain)
    with pytest.raises(RecipeError, match="--groups 3: 4 experts per layer were chosen"):
        decompose_experts(donor, chosen, Decomposition(num_groups=3), tmp_path / "x")


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "qwen3_moe", "jamba", "granitemoe"])
def test_experts_from_disk_are_those_of_the_live_model(family, tmp_path, capsys):
    donor = saved(tmp_path, family, capsys)
    layer = moe_layers(donor)[-1]
    stack = load_experts(donor, layer, (2, 0))
    live = build_tiny(family).get_submodule(donor.family.experts_module.format(layer=layer))
    parameters = dict(live.named_parameters())
    gate_up, down = (next(p for n, p in parameters.items() if k in n) for k in ("gate_up", "down"))
    assert torch.equal(torch.cat([stack.gate, stack.up], 1), gate_up[[2, 0]])
    assert torch.equal(stack.down, down[[2, 0]])


def test_shared_experts_are_stacked_with_routed_ones(tmp_path, capsys):
    build_tiny("deepseek_v3", n_shared_experts=2).save_pretrained(tmp_path / "d")
    capsys.readouterr()
    donor = open_checkpoint(str(tmp_path / "d"))
    assert (moe_layers(donor), find_shared(donor, 1)) == ((1,), 2)
    stack = load_experts(donor, 1, (5, 0))
    whole = build_tiny("deepseek_v3", n_shared_experts=2).model.layers[1].mlp.shared_experts
    half = whole.gate_proj.weight.shape[0] // 2
    assert torch.equal(stack.gate[0], whole.gate_proj.weight[half:])
    assert torch.equal(stack.down[0], whole.down_proj.weight[:, half:])
    chosen = selection_for(donor, ("shared:1", 0))
    made = decompose_experts(donor, chosen, Decomposition("single"), tmp_path / "k")
    assert torch.equal(made.layer(1)["gate"].matrix(), stack.gate[0])
    assert made.about["layers"][0]["groups"][0]["experts"] == ["shared:1", 0]


def test_a_shared_ffn_of_another_width_is_no_stack_of_experts(tmp_path, capsys):
    donor = saved(tmp_path, "qwen2_moe", capsys)
    assert find_shared(donor, 1) == 0


@pytest.mark.parametrize(
    ("family", "message"),
    [("llama", "has no experts"), ("gpt_oss", "experts of gpt_oss cannot be taken apart")],
)
def test_a_donor_without_plain_experts_is_refused(family, message, tmp_path, capsys):
    donor = saved(tmp_path, family, capsys)
    with pytest.raises(IncompatibleError, match=message):
        load_experts(donor, moe_layers(donor)[0], (0,))


def test_what_does_not_fit_is_refused_and_nothing_is_written(olmoe_pair, tmp_path):
    donor, other = (open_checkpoint(str(path)) for path in olmoe_pair)
    out, how = tmp_path / "k", Decomposition()
    chosen = selection_for(donor)
    cases = [
        (IncompatibleError, "was made for", selection_for(donor, fingerprint="0" * 64)),
        (IncompatibleError, "has layers 0, 1 of 9 experts", {**chosen, "num_experts": 9}),
        (IncompatibleError, "has layers first", {**chosen, "layers": [_named(chosen)]}),
        (RecipeError, "damaged: layer 0", {**chosen, "num_best": 9}),
        (RecipeError, "has no expert 8", selection_for(donor, ("shared:0",))),
        (RecipeError, "no selection of", {"a": 1}),
    ]
    for error, message, selection in cases:
        with pytest.raises(error, match=message):
            decompose_experts(donor, selection, how, out)
    with pytest.raises(RecipeError, match="rank 17 is larger than"):
        decompose_experts(donor, chosen, Decomposition(ranks=parse_ranks("17,2,1")), out)
    with pytest.raises(OutputError, match="the output is the input"):
        decompose_experts(donor, chosen, how, donor.path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=r"no readable knowledge\.json"):
        open_knowledge(other.path)


def _named(selection):
    return {**selection["layers"][0], "layer": "first"}


def test_weights_that_are_not_numbers_are_refused(olmoe_pair, tmp_path):
    import shutil

    folder = shutil.copytree(olmoe_pair[0], tmp_path / "bad")
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.layers.1.mlp.experts.3.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, file)
    donor = open_checkpoint(str(folder))
    with pytest.raises(CheckpointError, match="layer 1, expert 3: up has NaN or infinite weights"):
        decompose_experts(donor, selection_for(donor), Decomposition(), tmp_path / "k")
    assert not (tmp_path / "k").exists()


DAMAGES = [
    lambda about: about.clear(),
    lambda about: about["donor"].pop("activation"),
    lambda about: about.update(layers=[]),
    lambda about: about["layers"].append(about["layers"][0]),
    lambda about: about["decomposition"].update(num_groups=2),
    lambda about: about["decomposition"].update(method="best"),
    lambda about: about["layers"][0]["groups"][0]["matrices"].pop("up"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_description_is_one_line(olmoe_pair, tmp_path, damage):
    donor = open_checkpoint(str(olmoe_pair[0]))
    decompose_experts(donor, selection_for(donor), Decomposition("mean"), tmp_path / "k")
    about = json.loads((tmp_path / "k" / "knowledge.json").read_text())
    damage(about)
    (tmp_path / "k" / "knowledge.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=r"knowledge\.json: damaged, or of another version"):
        open_knowledge(tmp_path / "k")


@pytest.mark.parametrize("part", ["core", "rows"])
def test_factors_of_other_shapes_are_one_line(olmoe_pair, tmp_path, part):
    donor = open_checkpoint(str(olmoe_pair[0]))
    decompose_experts(donor, selection_for(donor), Decomposition(), tmp_path / "k")
    file = tmp_path / "k" / "layer-000.safetensors"
    tensors = load_file(file)
    tensors[f"0.up.{part}"] = tensors[f"0.up.{part}"][:-1].contiguous()
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"layer-000\.safetensors: damaged: its matrices"):
        open_knowledge(tmp_path / "k").layer(0)


def test_a_full_disk_is_one_line_and_leaves_nothing(olmoe_pair, tmp_path):
    donor = open_checkpoint(str(olmoe_pair[0]))
    script = (
        "import resource, signal, sys\n"
        "from moegraft.checkpoint import open_checkpoint\n"
        "from moegraft.errors import OutputError\n"
        "from moegraft.xpert.decompose import Decomposition\n"
        "from moegraft.xpert.knowledge import decompose_experts\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "import json\n"
        "donor, chosen = open_checkpoint(sys.argv[1]), json.loads(sys.argv[2])\n"
        "try:\n    decompose_experts(donor, chosen, Decomposition(), sys.argv[3])\n"
        "except OutputError as error:\n    print(error)\n"
    )
    given = (str(olmoe_pair[0]), json.dumps(selection_for(donor)), str(tmp_path / "k"))
    done = subprocess.run([sys.executable, "-c", script, *given], capture_output=True, check=False)
    told = done.stdout.decode()
    assert done.returncode == 0 and told.count("\n") == 1, done.stderr.decode()
    assert "layer-000.safetensors: not written" in told and "File too large" in told
    assert not list(tmp_path.iterdir())
