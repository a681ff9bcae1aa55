import pytest

from moegraft.errors import CheckpointError, FamilyError, RecipeError
from moegraft.families import FAMILIES, Key, find_family, load_family_map


@pytest.fixture
def family_yaml(tmp_path):
    """Writes a family.yaml and returns its path."""

    def write(text: str):
        path = tmp_path / "family.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


MINIMAL = """
name: my_moe
num_experts_key: moe_experts
patterns:
  - {template: "{root}layers.{layer}.moe.{expert}.w1.{leaf}", component: experts, roles: [gate]}
  - template: "{root}layers.{layer}.moe.w13"
    component: experts
    roles: [gate.weight, up.weight]
    stacked: true
  - {template: "{root}layers.{layer}.router.{leaf}", component: router}
  - {template: "vision.{any}", component: extra}
"""


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_found_by_model_type_alias_and_class(name):
    family = FAMILIES[name]
    for model_type in (name, *family.aliases):
        assert find_family({"model_type": model_type}).name == name
    for architecture in family.architectures:
        assert find_family({"architectures": [architecture]}).name == name


def test_the_model_type_outweighs_the_class():
    config = {"model_type": "olmoe", "architectures": ["LlamaForCausalLM"]}
    assert find_family(config).name == "olmoe"


@pytest.mark.parametrize("model_type", ["qwen3_vl_moe", "olmoe2", 7, ["olmoe"]])
def test_an_unknown_model_type_names_the_closest_and_the_way_out(model_type):
    closest = r"\(closest: .*moe\)" if isinstance(model_type, str) else ""
    way_out = rf"is not in the catalogue; expected one of olmoe, .*{closest}.*--map family.yaml"
    with pytest.raises(FamilyError, match=way_out):
        find_family({"model_type": model_type, "architectures": ["OlmoeForCausalLM"]})


@pytest.mark.parametrize("config", [{}, {"architectures": None}, {"architectures": [["x"], 3]}])
def test_a_config_that_says_nothing_is_an_error(config):
    with pytest.raises(FamilyError, match="model_type None"):
        find_family(config)


def test_only_families_with_prediction_layers_are_bound_to_a_config():
    config = {"model_type": "olmoe", "num_nextn_predict_layers": 1}
    assert find_family(config) is FAMILIES["olmoe"]
    with pytest.raises(CheckpointError, match="num_hidden_layers must be a positive integer"):
        find_family({"model_type": "deepseek_v3", "num_nextn_predict_layers": 1})
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 61, "num_nextn_predict_layers": "1"}
    with pytest.raises(CheckpointError, match="num_nextn_predict_layers must be a positive"):
        find_family(config)


def test_a_family_map_describes_a_family_from_nothing(family_yaml):
    path = family_yaml(MINIMAL)
    family = find_family({"model_type": "whatever"}, path)
    assert (family.name, family.num_experts({"moe_experts": 4})) == ("my_moe", 4)
    (single,) = family.pieces("model.layers.1.moe.2.w1.weight", (4, 2), 16)
    fused = family.pieces("model.layers.1.moe.w13", (3, 8, 2), 96)
    assert single.key == fused[4].key == Key("experts", 1, 2, "gate.weight")
    assert family.place("model.layers.1.router.weight").roles == ("router.weight",)
    assert family.place("vision.blocks.0.weight").component == "extra"
    with pytest.raises(FamilyError, match="fits no pattern of family 'my_moe'"):
        family.place("model.norm.weight")


def test_a_family_map_extends_and_replaces(family_yaml):
    path = family_yaml("""
name: mine
extends: deepseek_v3
num_experts_key: n
patterns:
  - {template: "{root}layers.{layer}.mlp.gate.{leaf}", component: extra}
  - {template: "{root}layers.{layer}.mlp.router.{leaf}", component: router, roles: [router]}
""")
    family = load_family_map(path)
    known = FAMILIES["deepseek_v3"]
    assert (family.name, family.aliases, family.architectures) == ("mine", (), ())
    assert (family.num_experts_key, family.ffn_key) == ("n", known.ffn_key)
    assert family.place("model.layers.0.mlp.gate.weight").component == "extra"
    assert family.place("model.layers.0.mlp.router.weight").component == "router"
    assert family.place("model.layers.0.mlp.gate.e_score_correction_bias").component == "router"
    assert known.place("model.layers.0.mlp.gate.weight").component == "router"


def test_a_family_map_is_bound_to_the_config(family_yaml):
    config = {"num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    family = find_family(config, family_yaml("{name: mine, extends: glm4_moe}"))
    assert family.place("model.layers.2.mlp.gate.weight").component == "extra"


def pattern(**keys: str) -> str:
    """A family.yaml with one pattern."""
    pattern = {"template": '"{root}x.{leaf}"', "component": "mlp"} | keys
    return f"name: a\npatterns:\n  - {{{', '.join(f'{k}: {v}' for k, v in pattern.items())}}}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: a", "needs patterns, or a family to extend"),
        ("{name: a, extends: olmo}", "unknown family under extends 'olmo'.* did you mean olmo2?"),
        ("{name: a, extends: olmoe, num_expert_key: n}", "num_expert_key: unknown key"),
        ("{extends: olmoe}", "name: "),
        (pattern(component="expert"), r"patterns.0.*unknown component 'expert'.* mean experts\?"),
        (pattern(template='"{rot}x"'), r"unknown placeholder 'rot'.* did you mean root\?"),
        (pattern(template='"{}x"'), "unknown placeholder ''"),
        (pattern(template='"x.{layer}.{layer}"'), "placeholder {layer} stands twice"),
        (pattern(template='"x.{layer"'), "unbalanced brace"),
        (pattern(template='"x.{any}"'), "{any} is for component extra only"),
        (pattern(template='"x.{leaf}"', component="experts"), "needs {expert}, or stacked: true"),
        (pattern(template='"{expert}.x"', component="experts", stacked="true"), "drop {expert}"),
        (pattern(roles="[gate, gate]"), "roles repeat: gate, gate"),
        (pattern(role="gate"), r"patterns.0.role: unknown key"),
    ],
)
def test_a_family_map_that_contradicts_itself_says_where(family_yaml, text, says):
    with pytest.raises(RecipeError, match=says) as caught:
        load_family_map(family_yaml(text))
    assert "family.yaml: " in str(caught.value)
    assert "\n" not in str(caught.value)
