"""Invariant 4: every tensor of every family has one component; an unknown name is an error."""

import re

import pytest

from moegraft.errors import FamilyError
from moegraft.families import COMPONENTS, FAMILIES, Family, Key, find_family
from moegraft.families.names import LEAVES
from tiny_families import TINY, data, live_tensors, stored_tensors, tiny_model


def cut(family: Family, tensors) -> dict[Key, bytes]:
    """The bytes of every piece; a key that two tensors claim is a failure."""
    found: dict[Key, bytes] = {}
    for name, tensor in tensors.items():
        raw = data(tensor)
        pieces = family.pieces(name, tuple(tensor.shape), len(raw))
        assert sum(piece.nbytes for piece in pieces) == len(raw), name
        for piece in pieces:
            assert piece.key not in found, f"{name} claims {piece.key} again"
            found[piece.key] = raw[piece.offset : piece.offset + piece.nbytes]
    return found


def examples(family: Family) -> list[str]:
    """One name for every template, root and leaf of a family."""
    leaves = [(leaf, "anything.0.weight") for leaf in LEAVES]
    return sorted(
        {
            rule.template.format(root=root, layer=3, expert=5, leaf=leaf, any=rest)
            for rule in family.rules
            for root in family.roots
            for leaf, rest in leaves
        }
    )


def test_every_family_of_the_catalogue_is_tested():
    assert {find_family({"model_type": name}).name for name in TINY} == set(FAMILIES)


@pytest.mark.parametrize("model_type", TINY)
def test_published_and_live_tensors_are_the_same_pieces_with_the_same_bytes(model_type, tmp_path):
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path)
    family = find_family(model.config.to_dict())
    published = cut(family, stored_tensors(tmp_path))
    live = cut(family, live_tensors(model))
    assert published.keys() == live.keys()
    assert [key for key in live if live[key] != published[key]] == []
    assert {key.component for key in live} <= set(COMPONENTS) - {"extra"}
    if family.is_moe:
        stacked = {key.expert for key in live if key.component == "experts"}
        assert stacked == set(range(4))


@pytest.mark.parametrize("model_type", TINY)
def test_every_live_parameter_and_buffer_has_a_component(model_type):
    model = tiny_model(model_type)
    family = find_family(model.config.to_dict())
    for name, _ in [*model.named_parameters(), *model.named_buffers()]:
        place = family.place(name)
        assert (place.component == "extra") == ("rotary_emb" in name)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_name_fits_two_components(name):
    family = FAMILIES[name]
    for example in examples(family):
        patterns = family._matcher._patterns
        claims = {rule.component for p, rule in patterns if p.fullmatch(example)}
        assert len(claims) == 1, example
        assert family.place(example).component in claims


@pytest.mark.parametrize("name", FAMILIES)
def test_templates_of_one_family_lead_to_different_keys_unless_they_are_layouts(name):
    family = FAMILIES[name]
    templates: dict[tuple, set[str]] = {}
    for rule in family.rules:
        for role in rule.roles:
            whole = role if "." in role else f"{role}.weight"
            templates.setdefault((rule.component, whole), set()).add(rule.template)
    for (component, role), same in templates.items():
        if len(same) > 1:
            assert component in ("experts", "router", "extra"), (component, role, same)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_unknown_name_is_an_error_that_names_the_way_out(name):
    way_out = "--map family.yaml, or keep the host's with --unknown host"
    for unknown in ("model.layers.0.novel.weight", "model.layers.x.mlp.gate.weight", "weight"):
        with pytest.raises(FamilyError, match=way_out):
            FAMILIES[name].place(unknown)


@pytest.mark.parametrize(
    "name", ["model.layers.00.mlp.gate.weight", "model.layers.٣.mlp.gate.weight"]
)
def test_a_number_is_plain_decimal(name):
    FAMILIES["olmoe"].place("model.layers.3.mlp.gate.weight")
    with pytest.raises(FamilyError, match=re.escape(repr(name))):
        FAMILIES["olmoe"].place(name)


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe"])
def test_prediction_layers_after_the_last_one_are_extra(name):
    config = {"model_type": name, "num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    family = find_family(config)
    ordinary = [n.replace(".layers.3.", ".layers.1.") for n in examples(family) if ".layers." in n]
    own = re.compile(r"\.(enorm|hnorm|eh_proj|embed_tokens|shared_head\.\w+|rotary_emb)\.")
    assert {family.place(n).component for n in ordinary if not own.search(n)} >= {
        *("attention", "router", "experts", "shared_experts", "mlp", "norm")
    }
    last = [n.replace(".layers.1.", ".layers.2.") for n in ordinary]
    assert {family.place(n).component for n in last} == {"extra"}
    fused = family.pieces("model.layers.2.mlp.experts.gate_up_proj", (4, 16, 8), 2048)
    single = family.pieces("model.layers.2.mlp.experts.3.up_proj.weight", (8, 8), 256)
    assert single[0].key in {piece.key for piece in fused}
    shared = family.pieces("model.layers.2.mlp.shared_experts.up_proj.weight", (8, 8), 256)
    dense = family.pieces("model.layers.2.mlp.up_proj.weight", (8, 8), 256)
    assert shared[0].key != dense[0].key


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe"])
def test_a_layer_beyond_the_prediction_layers_is_no_extra(name):
    config = {"model_type": name, "num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    gate = "model.layers.{}.mlp.gate.weight"
    assert find_family(config).place(gate.format(3)).component == "router"
    assert find_family(config | {"num_nextn_predict_layers": 0}).place(gate.format(2)).layer == 2
    assert FAMILIES[name].place(gate.format(2)).component == "router"


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe", "qwen3_5_moe"])
def test_block_scales_belong_where_their_weight_belongs(name):
    family = FAMILIES[name]
    weights = [n for n in examples(family) if n.endswith("_proj.weight")]
    assert weights
    for weight in weights:
        scale, place = family.place(f"{weight}_scale_inv"), family.place(weight)
        assert (scale.component, *scale[1:3]) == (place.component, *place[1:3])
        assert scale.roles == tuple(f"{role}_scale_inv" for role in place.roles)
    fused = family.pieces("model.layers.0.mlp.experts.gate_up_proj_scale_inv", (4, 2, 1), 32)
    single = family.pieces("model.layers.0.mlp.experts.1.up_proj.weight_scale_inv", (1, 1), 4)
    assert fused[3].key == single[0].key


def test_quantised_gpt_oss_experts_are_cut_by_expert():
    family = FAMILIES["gpt_oss"]
    name = "model.layers.7.mlp.experts.gate_up_proj"
    blocks = family.pieces(f"{name}_blocks", (32, 5760, 90, 16), 32 * 5760 * 90 * 16)
    scales = family.pieces(f"{name}_scales", (32, 5760, 90), 32 * 5760 * 90)
    assert [piece.key.expert for piece in blocks] == list(range(32))
    assert blocks[3].key == Key("experts", 7, 3, "gate_up.weight_blocks")
    assert scales[3].key == Key("experts", 7, 3, "gate_up.weight_scales")
    assert blocks[3].offset == 3 * 5760 * 90 * 16
    assert blocks[3].shape == (5760, 90, 16)


def test_a_vision_tower_and_its_wrapper_have_components(tmp_path):
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    text = tiny_model("qwen3_5_moe_text").config.to_dict()
    wrapper = Qwen3_5MoeConfig(
        text_config=text,
        vision_config=vision | {"out_hidden_size": 16, "num_position_embeddings": 16},
    )
    model = Qwen3_5MoeForConditionalGeneration(wrapper)
    model.save_pretrained(tmp_path)
    family = find_family(model.config.to_dict())
    published, live = (cut(family, t) for t in (stored_tensors(tmp_path), live_tensors(model)))
    assert published == live
    ours = {key for key in live if key.component != "extra"}
    inner = tiny_model("qwen3_5_moe_text")
    assert ours == set(cut(family, live_tensors(inner)))
