"""Content digests of configurations: equal weights have equal digests."""

import shutil

import pytest

from moegraft.errors import IncompatibleError
from moegraft.runtime import Host
from moegraft.sweep.cells import component_digests, plan_configurations, tokenizer_source
from moegraft.sweep.design import Configuration, SweepRecipe, design
from moegraft.transfer.recipe import Selection, TransferRecipe
from tiny_sweep import byte_tokenizer


def load(host, donor):
    return Host.load(str(host), {"donor": str(donor)}, device="cpu")


@pytest.fixture(scope="module")
def loaded(chat_pair):
    return load(*chat_pair)


def digests(host, **configuration):
    recipe = SweepRecipe(
        host.checkpoint.source, host.donor_checkpoints["donor"].source, **configuration
    )
    made = design(recipe)
    plans = plan_configurations(host, made)
    return {one.name: component_digests(host, plans.get(one.name)) for one in made}


def composed(host, *selections):
    """The digests of one composition that a recipe describes."""
    recipe = TransferRecipe(
        host.checkpoint.source,
        {"donor": host.donor_checkpoints["donor"].source},
        tuple(selections),
    )
    plan = plan_configurations(host, [Configuration("x", (), recipe)])["x"]
    return component_digests(host, plan)


def test_each_configuration_of_the_preset_is_made_of_other_parts(loaded):
    found = digests(loaded, preset="paper")
    assert len(found) == 9
    assert len({tuple(sorted(one.items())) for one in found.values()}) == 9
    host, donor, router = found["host"], found["donor"], found["router"]
    for unit, digest in router.items():
        assert digest == (donor if unit.startswith("router") else host)[unit]


def test_all_experts_one_by_one_are_the_component(loaded):
    whole = composed(loaded, Selection(("experts",)))
    assert composed(loaded, Selection(("experts[0-1]",)), Selection(("experts[2-3]",))) == whole
    assert composed(loaded, Selection(("experts[0-1]",))) != whole


def test_mixes_differ_by_rule_and_weight(loaded):
    rules = [("linear", 0.5), ("linear", 0.25), ("slerp", 0.5)]
    found = [
        composed(loaded, Selection(("experts",), rule=rule, weight=weight))
        for rule, weight in rules
    ]
    assert len({one["experts of layer 0"] for one in found}) == 3


def test_a_checkpoint_and_its_copy_have_no_configurations_that_differ(chat_pair, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(chat_pair[0], copy)
    found = digests(load(chat_pair[0], copy), preset="paper")
    assert len({tuple(sorted(one.items())) for one in found.values()}) == 1


def test_only_a_pure_donor_speaks_its_own_tokenizer(chat_pair, tmp_path):
    donor = tmp_path / "donor"
    shutil.copytree(chat_pair[1], donor)
    byte_tokenizer(reverse=True).save_pretrained(donor)
    other = load(chat_pair[0], donor)
    assert tokenizer_source(other, "donor") == "donor"
    assert tokenizer_source(other, "router") == "host"
    with pytest.raises(IncompatibleError, match="leave out embedding, lm_head and rest"):
        digests(other, configurations=("rest",))
    assert digests(other, configurations=("router",))


def test_tokenizers_that_agree_leave_the_donor_with_the_hosts(loaded):
    assert tokenizer_source(loaded, "donor") == "host"
