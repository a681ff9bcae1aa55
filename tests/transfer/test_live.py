import pytest
import torch
from lm_eval.api.instance import Instance

import moegraft
from moegraft.errors import RecipeError
from moegraft.runtime import Host
from moegraft.transfer import apply_plan, component_recipe, configuration_patches, plan_transfer
from tiny_sweep import build_pair

REQUESTS = [("1 and 2 is", " 3"), ("1 and 2 is", " 12"), ("a", "b")]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    paths = build_pair(tmp_path_factory.mktemp("live"))
    return Host.load(str(paths[0]), {"donor": str(paths[1])})


def answers(model):
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(REQUESTS)]
    return model.loglikelihood(requests)


@pytest.mark.parametrize("configuration", ["host", "router+experts", "donor"])
def test_an_lm_answers_as_the_written_checkpoint(host, configuration, tmp_path):
    recipe = component_recipe(host.checkpoint.source, "donor", configuration)
    plan = plan_transfer(recipe, host.checkpoint, host.donor_checkpoints)
    written = Host.load(str(apply_plan(plan, tmp_path / "out")), {})
    found = answers(moegraft.lm(host, configuration))
    assert found == answers(moegraft.lm(written, "host"))
    if configuration != "host":
        assert found != answers(moegraft.lm(host, "host"))


def test_a_configuration_needs_a_donor_of_that_name(host):
    with pytest.raises(RecipeError, match="unknown component 'gate'"):
        configuration_patches(host, "gate")
    alone = Host.load(host.checkpoint.source, {})
    with pytest.raises(RecipeError, match="expected a donor named 'donor', got: none"):
        configuration_patches(alone, "router")


def test_a_composed_host_is_the_swapped_model_and_comes_back(host):
    ids = torch.arange(2, 10)[None]
    with torch.no_grad():
        before = host.model(ids).logits
        with moegraft.composed(host, "router+experts") as model:
            inside = model(ids).logits
        assert not torch.equal(inside, before)
        assert torch.equal(host.model(ids).logits, before)
