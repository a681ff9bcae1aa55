import pytest

from moegraft.config import dump_recipe, load_recipe, parse_recipe
from moegraft.errors import RecipeError, RunError
from moegraft.sweep.design import (
    NANO_CONDITIONS,
    PAPER_CONDITIONS,
    NamedConfiguration,
    SweepRecipe,
    canonical_name,
    check_extends,
    design,
)
from moegraft.transfer.recipe import Selection

PAPER = [
    "host",
    "router",
    "attention",
    "experts",
    "router+attention",
    "router+experts",
    "attention+experts",
    "router+attention+experts",
    "donor",
]


def names(recipe: SweepRecipe) -> list[str]:
    return [made.name for made in design(recipe)]


def test_the_paper_preset_is_the_eight_transfers_and_the_pure_donor():
    assert names(SweepRecipe("a", "b")) == PAPER
    recipes = {made.name: made.recipe for made in design(SweepRecipe("a", "b", "paper"))}
    assert recipes["host"].selections == ()
    assert recipes["router+experts"].selections[0].components == ("router", "experts")
    assert recipes["donor"].selections[0].components == ("all",)


def test_a_factorial_over_four_factors_has_sixteen_configurations_and_the_donor():
    factors = ("rest", "experts", "router", "attention")
    found = names(SweepRecipe("a", "b", "factorial", factors))
    assert len(found) == 17
    assert found[:5] == ["host", "router", "attention", "experts", "rest"]
    assert found[-2:] == ["router+attention+experts+rest", "donor"]


def test_one_set_of_components_has_one_name():
    assert canonical_name(["experts", "router"]) == "router+experts"
    assert canonical_name(["experts[0-3]", "attention"]) == "attention+experts[0-3]"
    assert canonical_name([]) == "host"


def test_a_custom_list_takes_component_names_and_selections_from_several_donors():
    early = NamedConfiguration("early", (Selection(("experts",), donor="third", layers="0:8"),))
    recipe = SweepRecipe(
        "a", "b", configurations=("experts+attention", early), donors={"third": "c"}
    )
    made = design(recipe)
    assert [one.name for one in made] == ["host", "attention+experts", "early", "donor"]
    assert dict(made[2].recipe.donors) == {"third": "c"}


def test_a_recipe_survives_yaml(tmp_path):
    early = NamedConfiguration("early", (Selection(("experts",), layers="0:8"),))
    recipe = SweepRecipe("a", "b", "paper", configurations=("norm", early), limit="all").resolved()
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.yaml", SweepRecipe) == recipe


def test_conditions_follow_the_host_when_none_are_named():
    assert SweepRecipe("nano:sft-dpo", "nano:rlvr").resolved().conditions == NANO_CONDITIONS
    assert SweepRecipe("org/a", "org/b").resolved().conditions == PAPER_CONDITIONS
    assert SweepRecipe("a", "b", conditions=("mine",)).resolved().conditions == ("mine",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"limit": 0}, "limit: expected a positive number or 'all', got 0"),
        ({"limits": 5}, "limits: unknown key"),
        ({"factors": ["router"]}, "have an effect only with 'preset: factorial'"),
        ({"preset": "factorial"}, "needs at least one"),
        ({"preset": "factorial", "factors": ["norm", "norm"]}, "'norm' is named twice"),
        ({"preset": "custom"}, "'preset: custom' needs at least one"),
        ({"donors": {"donor": "c"}}, "are taken"),
        ({"configurations": [{"name": "donor", "selections": []}]}, "other than 'host' and"),
    ],
)
def test_a_wrong_recipe_is_an_error_that_names_the_key(content, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe({"host": "a", "donor": "b", **content}, SweepRecipe, where="sweep.yaml")


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ("routre", "unknown component 'routre'; did you mean 'router'"),
        ("host", "always included"),
        ("experts+experts", "'experts' is named twice"),
        (NamedConfiguration("x", (Selection(("norm",), donor="third"),)), "no donor 'third'"),
    ],
)
def test_a_wrong_configuration_is_an_error(configuration, message):
    with pytest.raises(RecipeError, match=message):
        design(SweepRecipe("a", "b", configurations=(configuration,)))


def test_only_configurations_of_the_design_can_be_confirmed():
    with pytest.raises(RecipeError, match="no 'routre'; expected of: host, router"):
        design(SweepRecipe("a", "b", confirm_configurations=("routre",)))


def test_a_run_may_grow():
    old = SweepRecipe("a", "b", conditions=("x",), limit=20)
    grown = SweepRecipe(
        "a",
        "b",
        "paper",
        configurations=("norm",),
        conditions=("y", "x"),
        limit="all",
        confirm=True,
    )
    check_extends(old, grown, "runs/x")
    check_extends(old, SweepRecipe("a", "b", preset="paper", conditions=("x",), limit=20), "runs/x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 10}, "limit 20 became 10"),
        ({"seed": 1}, "seed 0 became 1"),
        ({"donor": "c"}, "donor 'b' became 'c'.*choose another --out"),
        ({"chat_template": False}, "chat_template True became False"),
        ({"conditions": ("y",)}, "x is missing or changed"),
        ({"configurations": ("norm",)}, "router, .* is missing or changed"),
    ],
)
def test_any_other_change_of_a_run_is_refused(changes, message):
    old = SweepRecipe("a", "b", conditions=("x",), limit=20)
    content = {"host": "a", "donor": "b", "conditions": ("x",), "limit": 20} | changes
    with pytest.raises(RunError, match=message):
        check_extends(old, SweepRecipe(**content), "runs/x")
