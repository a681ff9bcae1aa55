import pytest

from moegraft.errors import CheckpointError, FamilyError
from moegraft.families import FAMILIES, Family, Key, Rule

OLMOE = FAMILIES["olmoe"]


def test_a_key_reads_as_a_sentence():
    assert str(Key("experts", 7, 3, "gate.weight")) == "experts[3] of layer 7: gate.weight"
    assert str(Key("lm_head", None, None, "lm_head.weight")) == "lm_head: lm_head.weight"


def test_a_fused_tensor_is_cut_by_expert_then_by_role():
    pieces = OLMOE.pieces("model.layers.1.mlp.experts.gate_up_proj", (3, 8, 4), 3 * 8 * 4 * 2)
    assert [(p.key.expert, p.key.role) for p in pieces] == [
        (expert, role) for expert in range(3) for role in ("gate.weight", "up.weight")
    ]
    assert [p.offset for p in pieces] == [32 * i for i in range(6)]
    assert {p.shape for p in pieces} == {(4, 4)}
    assert {p.nbytes for p in pieces} == {32}


def test_a_single_role_of_a_stacked_tensor_keeps_its_axes():
    pieces = OLMOE.pieces("model.layers.1.mlp.experts.down_proj", (3, 8, 4), 3 * 8 * 4)
    assert [p.shape for p in pieces] == [(8, 4)] * 3


def test_a_whole_tensor_is_one_piece():
    (piece,) = OLMOE.pieces("model.layers.1.self_attn.q_proj.weight", (8, 4), 64)
    assert piece.key == Key("attention", 1, None, "q_proj.weight")
    assert (piece.shape, piece.offset, piece.nbytes) == ((8, 4), 0, 64)


@pytest.mark.parametrize("shape", [(3, 7, 4), (3,), ()])
def test_a_shape_that_cannot_be_cut_is_an_error(shape):
    with pytest.raises(CheckpointError, match="expected 2 equal runs on axis 1"):
        OLMOE.pieces("model.layers.1.mlp.experts.gate_up_proj", shape, 42)


def test_a_scalar_has_no_expert_axis():
    with pytest.raises(CheckpointError, match="expected an expert axis"):
        OLMOE.pieces("model.layers.1.mlp.experts.down_proj", (), 4)


def test_no_experts_give_no_pieces():
    assert OLMOE.pieces("model.layers.1.mlp.experts.down_proj", (0, 8, 4), 0) == ()


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        (
            "model.layers.3.mlp.expert.41.gate_proj.weight",
            "model.layers.{layer}.mlp.experts.{expert}.gate_proj.{leaf}",
        ),
        ("model.layers.30.self_attn.q_nrom.weight", "model.layers.{layer}.self_attn.q_norm.{leaf}"),
        ("lm_heads.weight", "lm_head.{leaf}"),
    ],
)
def test_an_unknown_name_is_answered_with_the_closest_template(name, closest):
    with pytest.raises(FamilyError) as caught:
        OLMOE.place(name)
    assert f"closest known pattern: {closest}. Describe it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_like_none_gets_no_hint():
    with pytest.raises(FamilyError) as caught:
        OLMOE.place("zzz")
    assert "closest" not in str(caught.value)


def test_two_components_that_claim_one_name_are_an_error():
    family = Family(
        name="both",
        rules=(
            Rule("{root}layers.{layer}.x.{leaf}", "mlp", ("x",)),
            Rule("{root}layers.0.x.{leaf}", "norm", ("x",)),
        ),
    )
    assert family.place("model.layers.1.x.weight").component == "mlp"
    with pytest.raises(FamilyError, match=r"fits several components .* mlp .* norm .*disjoint"):
        family.place("model.layers.0.x.weight")


def test_a_literal_number_in_a_template_means_that_number():
    family = Family(
        name="indexed",
        rules=(
            Rule("{root}layers.{layer}.ffn.0.{leaf}", "mlp", ("gate",)),
            Rule("{root}layers.{layer}.ffn.1.{leaf}", "mlp", ("up",)),
        ),
    )
    roles = [family.place(f"model.layers.2.ffn.{i}.weight").roles for i in (0, 1)]
    assert roles == [("gate.weight",), ("up.weight",)]
    with pytest.raises(FamilyError):
        family.place("model.layers.2.ffn.2.weight")


def test_layer_and_expert_may_stand_in_any_order():
    rule = Rule("experts.{expert}.layers.{layer}.{leaf}", "experts", ("gate",))
    family = Family(name="turned", rules=(rule,), num_experts_key="n")
    for layer, expert in ((2, 5), (7, 1)):
        place = family.place(f"experts.{expert}.layers.{layer}.weight")
        assert (place.layer, place.expert) == (layer, expert)


def test_live_name_replaces_only_the_root():
    family = FAMILIES["qwen3_5_moe"]
    assert family.live_name("model.language_model.norm.weight") == "model.norm.weight"
    assert family.live_name("model.norm.weight") == "model.norm.weight"
    assert family.live_name("lm_head.weight") == "lm_head.weight"


@pytest.mark.parametrize("value", [None, 0, -1, "2", True, 2.0])
def test_a_size_that_is_no_positive_integer_is_an_error(value):
    with pytest.raises(CheckpointError, match=r"config.json: num_experts must be .* integer, got"):
        OLMOE.num_experts({"num_experts": value})


def test_sizes_of_a_wrapper_stand_under_its_text_config():
    config = {"text_config": {"num_hidden_layers": 3}, "num_hidden_layers": 9}
    assert FAMILIES["qwen3_5_moe"].num_layers(config) == 3
    assert FAMILIES["qwen3_5_moe"].num_layers({"num_hidden_layers": 9}) == 9
    assert FAMILIES["olmoe"].num_layers(config) == 9


def test_a_dense_family_has_no_experts():
    llama = FAMILIES["llama"]
    assert not llama.is_moe
    assert (llama.num_experts({}), llama.top_k({})) == (0, 0)


def test_the_number_of_experts_is_found_under_the_names_that_transformers_treats_as_equal():
    qwen = FAMILIES["qwen3_moe"]
    assert qwen.num_experts({"num_experts": 4, "num_local_experts": 9}) == 4
    assert qwen.num_experts({"num_local_experts": 9}) == 9
    with pytest.raises(CheckpointError, match="num_experts must be a positive integer, got None"):
        qwen.num_experts({})
