"""A host with donors: what is loaded, shared, hashed, and refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moegraft.errors import IncompatibleError, RecipeError, ResourceError
from moegraft.runtime import Host
from moegraft.runtime.weights import same_bits
from moegraft.transfer.live import configuration_patches

CONFIGURATIONS = (
    "router",
    "attention",
    "experts",
    "router+attention",
    "router+experts",
    "attention+experts",
    "router+attention+experts",
    "donor",
    "host",
)


def _logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def _edit_config(path, **fields):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_host_and_pure_donor_equal_from_pretrained_bit_for_bit(olmoe_pair, ids, dtype):
    host = Host.load(str(olmoe_pair[0]), {"donor": str(olmoe_pair[1])}, device="cpu", dtype=dtype)
    stock = [
        AutoModelForCausalLM.from_pretrained(path, dtype=dtype, experts_implementation="eager")
        for path in olmoe_pair
    ]
    assert torch.equal(_logits(host.model, ids), _logits(stock[0], ids))
    with host.with_patches(host.donor_patches("donor")) as model:
        assert torch.equal(_logits(model, ids), _logits(stock[1], ids))
    assert torch.equal(_logits(host.model, ids), _logits(stock[0], ids))


def test_nine_configurations_agree_in_115_percent_of_one_model(make_olmoe, tmp_path, ids):
    paths = [str(make_olmoe(tmp_path / n, seed=s, num_hidden_layers=8)) for s, n in enumerate("ab")]
    resident = Host.load(paths[0], {"donor": paths[1]}, device="cpu")
    budget = int(1.15 * sum(p.numel() * p.element_size() for p in resident.model.parameters()))
    streamed = Host.load(paths[0], {"donor": paths[1]}, device="cpu", memory_budget_bytes=budget)
    assert (resident.memory.mode, streamed.memory.mode) == ("resident", "streamed")
    seen = []
    for configuration in CONFIGURATIONS:
        logits = []
        for host in (resident, streamed):
            with host.with_patches(configuration_patches(host, configuration)) as model:
                logits.append(_logits(model, ids))
        assert torch.equal(*logits), configuration
        assert not any(torch.equal(logits[0], other) for other in seen), configuration
        seen.append(logits[0])


def test_the_streamed_mode_leaves_equal_tensors_alone_and_hashes_alike(olmoe_pair, tmp_path):
    donor = tmp_path / "donor"
    donor.mkdir()
    for file in olmoe_pair[0].iterdir():
        (donor / file.name).write_bytes(file.read_bytes())
    tensors = load_file(donor / "model.safetensors")
    tensors["model.layers.1.mlp.gate.weight"] = tensors["model.layers.1.mlp.gate.weight"] + 1
    save_file(tensors, donor / "model.safetensors", metadata={"format": "pt"})
    sources = str(olmoe_pair[0]), {"donor": str(donor)}
    resident = Host.load(*sources, device="cpu")
    assert resident.memory.donor_bytes == 8 * 32 * 4
    needed = resident.memory.host_bytes
    with pytest.raises(ResourceError):
        Host.load(*sources, device="cpu", memory_budget_bytes=needed // 2)
    for name in resident.parameter_names():
        shared = resident.donor_parameter("donor", name) is resident.parameter(name)
        assert shared == (name != "model.layers.1.mlp.gate.weight")
    hashes = [resident.component_hashes(source) for source in ("host", "donor")]
    differing = {key for key in hashes[0] if hashes[0][key] != hashes[1][key]}
    assert differing == {("router", 1)}


def test_component_hashes_do_not_depend_on_the_mode(make_olmoe, tmp_path):
    paths = [
        str(make_olmoe(tmp_path / n, seed=s, num_hidden_layers=8, dtype="bfloat16"))
        for s, n in enumerate("ab")
    ]
    resident = Host.load(paths[0], {"donor": paths[1]}, device="cpu")
    budget = int(1.15 * resident.memory.host_bytes)
    streamed = Host.load(paths[0], {"donor": paths[1]}, device="cpu", memory_budget_bytes=budget)
    assert streamed.memory.mode == "streamed"
    for source in ("host", "donor"):
        assert resident.component_hashes(source) == streamed.component_hashes(source)
    with streamed.with_patches(streamed.donor_patches("donor")):
        assert streamed.component_hashes("host") == resident.component_hashes("host")
    components = {component for component, _ in resident.component_hashes("host")}
    assert components == {
        *("embedding", "attention", "qk_norm", "router", "experts", "norm", "lm_head")
    }


def test_a_tied_host_takes_a_tied_donor(make_olmoe, tmp_path, ids):
    paths = [
        str(make_olmoe(tmp_path / n, seed=s, tie_word_embeddings=True)) for s, n in enumerate("ab")
    ]
    host = Host.load(paths[0], {"donor": paths[1]}, device="cpu")
    stock = AutoModelForCausalLM.from_pretrained(paths[1], experts_implementation="eager")
    assert host.model.lm_head.weight is host.model.model.embed_tokens.weight
    with host.with_patches(host.donor_patches("donor")) as model:
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.equal(_logits(model, ids), _logits(stock, ids))
    assert host.model.lm_head.weight is host.model.model.embed_tokens.weight


def test_an_untied_host_takes_a_tied_donor_but_not_the_other_way_round(
    make_olmoe, tmp_path, ids, olmoe_pair
):
    tied = str(make_olmoe(tmp_path / "tied", seed=7, tie_word_embeddings=True))
    host = Host.load(str(olmoe_pair[0]), {"donor": tied}, device="cpu")
    stock = AutoModelForCausalLM.from_pretrained(tied, experts_implementation="eager")
    with host.with_patches(host.donor_patches("donor")) as model:
        assert torch.equal(_logits(model, ids), _logits(stock, ids))
    other = Host.load(tied, {"donor": str(olmoe_pair[0])}, device="cpu")
    with pytest.raises(IncompatibleError, match="the host ties its embeddings, the donor does not"):
        other.donor_patches("donor")


def test_a_donor_with_another_rope_is_refused_as_pure_donor_only(make_olmoe, tmp_path, olmoe_pair):
    path = make_olmoe(tmp_path / "donor", seed=5)
    rope = {"rope_type": "default", "rope_theta": 5e5}
    _edit_config(path, rope_parameters=rope, eos_token_id=3, router_aux_loss_coef=0.5)
    host = Host.load(str(olmoe_pair[0]), {"donor": str(path)}, device="cpu")
    with pytest.raises(IncompatibleError, match=r"rope_theta is 10000.* and 500000.*host of its"):
        host.donor_patches("donor")
    assert len(host.donor_obstacles("donor")) == 1
    assert host.donor_config("donor")["eos_token_id"] == 3
    assert host.eos_ids == {0, 3}


def test_donors_that_do_not_fit_are_refused_before_loading(make_olmoe, tmp_path, olmoe_pair):
    host = str(olmoe_pair[0])
    wide = str(make_olmoe(tmp_path / "wide", intermediate_size=24))
    with pytest.raises(IncompatibleError, match=r"'x' does not fit.*has shape \[24, 32\], exp"):
        Host.load(host, {"x": wide}, device="cpu")
    half = str(make_olmoe(tmp_path / "half", dtype="bfloat16"))
    with pytest.raises(IncompatibleError, match=r"stored in torch.bfloat16.*pass a dtype"):
        Host.load(host, {"x": half}, device="cpu")
    assert Host.load(host, {"x": half}, device="cpu", dtype="float32").dtype == torch.float32
    with pytest.raises(RecipeError, match="cannot be called 'host'"):
        Host.load(host, {"host": host}, device="cpu")


def test_unknown_donors_and_tensors_are_refused(host):
    with pytest.raises(RecipeError, match=r"no donor is called 'other'; .* with 'donor'"):
        host.donor_parameter("other", "lm_head.weight")
    with pytest.raises(IncompatibleError, match="donor has no tensor 'head'"):
        host.donor_value("donor", "head")


def test_a_host_without_tokenizer_says_so(host):
    assert host.tokenizer is None
    assert host.tokenizer_differences == []
    assert host.id_maps_differ == {"donor": False}


def test_tokenizers_are_compared_when_loaded(make_olmoe, make_tokenizer, tmp_path):
    paths = [make_olmoe(tmp_path / n, seed=s) for s, n in enumerate("ab")]
    make_tokenizer(paths[0])
    make_tokenizer(paths[1], eos="|||IP_ADDRESS|||")
    host = Host.load(str(paths[0]), {"donor": str(paths[1])}, device="cpu")
    assert host.tokenizer is not None
    assert host.id_maps_differ == {"donor": False}
    assert host.tokenizer_differences == [
        "Only the names of special ids differ between host and donor: "
        "id 0 is '<|endoftext|>' and '|||IP_ADDRESS|||'."
    ]


def test_minus_zero_is_not_zero():
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
