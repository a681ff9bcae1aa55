import json

import pytest
import torch
from transformers import DynamicCache

from moegraft.families import FAMILIES, find_family
from tiny_families import TINY, tiny_model


@pytest.mark.parametrize("model_type", TINY)
def test_a_saved_config_names_its_family_and_its_sizes(model_type, tmp_path):
    model = tiny_model(model_type)
    model.config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    family = find_family(config)
    assert model_type in (family.name, *family.aliases)
    assert type(model).__name__ in family.architectures
    assert family.num_layers(config) == len(model.model.layers)
    assert family.num_experts(config) == (4 if family.is_moe else 0)
    assert family.top_k(config) == (2 if family.is_moe else 0)


@pytest.mark.parametrize("model_type", TINY)
def test_live_modules_are_where_the_catalogue_says(model_type):
    model = tiny_model(model_type)
    family = find_family(model.config.to_dict())
    modules = dict(model.named_modules())
    assert (family.router_module is None) == (family.experts_module is None) == (not family.is_moe)
    for layer in range(len(model.model.layers)):
        name = f"model.layers.{layer}"
        here = [n for n, _ in model.named_parameters() if n.startswith(name)]
        routed = "experts" in {family.place(n).component for n in here}
        for template in filter(None, (family.router_module, family.experts_module)):
            assert (template.format(layer=layer) in modules) == routed


@pytest.mark.parametrize("model_type", TINY)
def test_the_width_of_an_ffn_is_where_the_catalogue_says(model_type):
    model = tiny_model(model_type)
    config = model.config.to_dict()
    family = find_family(config)
    ours = "experts" if family.is_moe else "mlp"
    for name, parameter in model.named_parameters():
        if family.place(name).component == ours and name.removesuffix(".weight").endswith(
            "down_proj"
        ):
            width_axis = -2 if family.name == "gpt_oss" else -1
            assert parameter.shape[width_axis] == family.sizes(config)[family.ffn_key]


@pytest.mark.parametrize("model_type", TINY)
def test_a_cache_branches_where_the_catalogue_says_so(model_type):
    model = tiny_model(model_type)
    tokens = torch.arange(3, 13)[None]
    with torch.no_grad():
        cache = model(tokens[:, :-1], use_cache=True).past_key_values
    assert isinstance(cache, DynamicCache)
    branches = all(hasattr(layer, "batch_repeat_interleave") for layer in cache.layers)
    assert branches == find_family(model.config.to_dict()).branching_cache


def test_every_family_says_which_classes_it_covers():
    classes = [name for family in FAMILIES.values() for name in family.architectures]
    assert all(family.architectures for family in FAMILIES.values())
    assert len(classes) == len(set(classes))
