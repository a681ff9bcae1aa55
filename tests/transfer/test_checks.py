import pytest
import torch

from moegraft.errors import IncompatibleError
from tiny_families import build_tiny

EXPERT = "model.layers.0.mlp.experts.3.up_proj.weight"


def without(name):
    return lambda tensors: {n: t for n, t in tensors.items() if n != name}


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"num_experts": 4}, "does not fit: num_experts: host 8, donor 4"),
        ({"num_hidden_layers": 3}, "does not fit: num_layers: host 2, donor 3"),
        ({"hidden_size": 16}, "does not fit: hidden_size: host 32, donor 16"),
        ({"intermediate_size": 8}, r"host has shape .*, donor 'd' .*shapes must be equal"),
    ],
)
def test_other_sizes_are_refused(plan, make_olmoe, tmp_path, sizes, says):
    donor = make_olmoe(tmp_path / "donor", seed=5, **sizes)
    with pytest.raises(IncompatibleError, match=says):
        plan("experts", donor=donor)


def test_other_heads_are_refused_for_attention_only(plan, vary):
    donor = vary(config={"num_attention_heads": 8, "num_key_value_heads": 8})
    with pytest.raises(IncompatibleError, match=r"num_attention_heads: host 4, donor 8.*attention"):
        plan("attention", donor=donor)
    assert plan("experts", donor=donor).warnings == ()


def test_differences_of_meaning_are_warnings_where_they_matter(plan, vary):
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    donor = vary(config={"num_experts_per_tok": 4, "rms_norm_eps": 1e-6, **rope})
    (top_k, eps) = plan("router", donor=donor).warnings
    assert top_k == "top_k: host 2, donor 4 (d); the result uses the host's"
    assert "rms_norm_eps: host 1e-05, donor 1e-06" in eps
    assert any("rope" in line for line in plan("attention", donor=donor).warnings)


def test_rope_is_compared_in_both_spellings(plan, vary):
    donor = vary(config={"rope_parameters": None, "rope_theta": 10000, "rope_scaling": None})
    assert plan("attention", donor=donor).warnings == ()


def test_a_donor_without_a_tensor_is_refused_by_name(plan, vary):
    def biased(tensors):
        return tensors | {f"model.layers.{i}.mlp.gate.bias": torch.ones(8) for i in range(2)}

    donor = vary("biased", tensors=biased)
    with pytest.raises(IncompatibleError, match=r"has 'model.layers.0.mlp.gate.bias' .*be lost"):
        plan("router", donor=donor)
    with pytest.raises(IncompatibleError, match=r"no counterpart of 'model.layers.0.mlp.gate.bias"):
        plan("router", host=donor)
    assert plan("attention", donor=donor).warnings == ()


def test_other_dtypes_are_refused_unless_cast(plan, make_olmoe, tmp_path):
    donor = make_olmoe(tmp_path / "donor", seed=5, dtype="bfloat16")
    says = "host has dtype F32, donor 'd' BF16; `transfer --cast` converts to the host's"
    with pytest.raises(IncompatibleError, match=says):
        plan("router", donor=donor)
    made = plan("router", donor=donor, cast=True)
    assert not made.copies_everything
    assert {str(source) for source in made.moves.values()} == {"d (cast)"}


def quantised(tensors):
    """Every q projection as FP8 with a block scale."""
    found = dict(tensors)
    for name in tensors:
        if name.endswith("q_proj.weight"):
            found[name] = tensors[name].to(torch.float8_e4m3fn)
            found[name + "_scale_inv"] = torch.ones(1, 1)
    return found


def test_a_quantised_weight_travels_with_its_scales(plan, vary):
    host = vary("host", tensors=quantised)
    donor = vary("donor", tensors=lambda t: {n: x + 0.1 for n, x in t.items()})
    donor = vary("donor-fp8", source=donor, tensors=quantised)
    moved = {k.role for k in plan("attention", host=host, donor=donor).host.pieces()}
    assert {"q_proj.weight", "q_proj.weight_scale_inv"} <= moved
    made = plan("attention", host=host, donor=donor)
    assert {(a.component, a.source): a.num_pieces for a in made.accounts}["attention", "d"] == 10


def test_quantised_and_plain_do_not_mix(plan, vary):
    quant = vary("quant", tensors=quantised)
    with pytest.raises(IncompatibleError, match=r"quantised tensors cannot be converted|be lost"):
        plan("attention", donor=quant, cast=True)
    with pytest.raises(IncompatibleError, match="quantised tensors cannot be mixed by 'linear'"):
        plan("attention", host=quant, donor=quant, rule="linear", weight=0.5)
    assert plan("experts", donor=quant).warnings == ()


def test_a_donor_that_ties_its_head_does_not_fit_one_that_does_not(tmp_path, plan):
    for tied in (True, False):
        build_tiny("qwen3", tie_word_embeddings=tied).save_pretrained(tmp_path / str(tied))
    with pytest.raises(IncompatibleError, match="tie_word_embeddings: host False, donor True"):
        plan("embedding", host=tmp_path / "False", donor=tmp_path / "True")
