import pytest

from moegraft.config import dump_recipe, load_recipe, parse_recipe
from moegraft.errors import RecipeError
from moegraft.transfer import Selection, TransferRecipe, component_recipe
from moegraft.transfer.recipe import group_members, read_indices


def test_a_recipe_reads_back_what_it_writes(tmp_path):
    selections = (
        Selection(("experts[0-7,12]", "router"), layers="8:16", rule="slerp", weight=0.5),
        Selection(("attention",), donor="b"),
    )
    selections = (Selection(selections[0].components, "a", "8:16"), selections[1])
    recipe = TransferRecipe("h", {"a": "org/a@main", "b": "b"}, selections, licence="mit")
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "r.yaml", TransferRecipe) == recipe


@pytest.mark.parametrize(
    ("text", "size", "found"),
    [
        ("0,3,5", 16, (0, 3, 5)),
        ("8:16", 16, tuple(range(8, 16))),
        ("14:", 16, (14, 15)),
        (":2", 16, (0, 1)),
        ("0-7,12", 16, (*range(8), 12)),
        ("5,0:2", 16, (0, 1, 5)),
    ],
)
def test_indices_are_numbers_inclusive_dashes_and_half_open_colons(text, size, found):
    assert read_indices(text, "layers", size) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("16", "layers 16: 16 is out of range, expected 0 to 15"),
        ("20:", "20 is out of range"),
        ("0:99999999999999", "16 is out of range"),
        ("3:3", "range '3:3' is empty"),
        ("5-4", "range '5-4' is empty"),
        ("0-3,2", "named twice"),
        ("a", "cannot read 'a'"),
        ("-1", "cannot read '-1' .*expected indices such as"),
        ("", "cannot read ''"),
        ("1;2", "cannot read '1;2'"),
    ],
)
def test_bad_indices_are_one_clear_line(text, says):
    with pytest.raises(RecipeError, match=says):
        read_indices(text, "layers", 16)


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        ({"components": []}, "expected at least one component"),
        ({"components": ["expert"]}, "unknown component 'expert'; did you mean 'experts'"),
        ({"components": ["extra"]}, "always stay the host's"),
        ({"components": ["router[1]"]}, r"only 'experts' takes indices, got 'router\[1\]'"),
        ({"components": ["experts[1]"], "experts": "2"}, "given twice"),
        ({"components": ["router"], "experts": "2"}, "expected the component 'experts'"),
        ({"components": ["router", "router"]}, "named twice"),
        ({"components": ["router"], "weight": 0.5}, "has no effect under rule 'take'"),
        ({"components": ["router"], "rule": "linear"}, "expected a weight between 0 and 1"),
        ({"components": ["router"], "rule": "slerp", "weight": 2}, "from 0 to 1, got 2"),
        ({"components": ["router"], "rule": "ties"}, "'take', 'linear' or 'slerp'"),
        ({"components": ["router"], "layers": 496}, "put the indices in quotes"),
        ({"components": ["experts[x]"]}, "cannot read 'x'"),
        ({"components": ["router"], "donor": "z"}, "no donor 'z'; the recipe names: d"),
        ({"components": ["qk_norm"]}, "qk_norm moves with attention; set 'qk_norm: own'"),
        ({"components": ["router"], "layer": "1"}, r"selections.0.layer: unknown key"),
    ],
)
def test_bad_selections_name_the_file_and_the_key(selection, says):
    content = {"host": "h", "donors": {"d": "x"}, "selections": [selection]}
    with pytest.raises(RecipeError, match=f"r.yaml: .*{says}"):
        parse_recipe(content, TransferRecipe, where="r.yaml")


def test_donors_must_have_names_of_their_own_and_give_something():
    with pytest.raises(RecipeError, match="'host' names the host"):
        TransferRecipe("h", {"host": "x"})
    with pytest.raises(RecipeError, match="expected a donor, got none; the recipe names: a, b"):
        TransferRecipe("h", {"a": "x", "b": "y"}, (Selection(("router",)),))
    with pytest.raises(RecipeError, match="'b' gives nothing"):
        TransferRecipe("h", {"a": "x", "b": "y"}, (Selection(("router",), "a"),))


def test_configurations_name_components_and_groups():
    assert component_recipe("h", "d", "host").selections == ()
    assert component_recipe("h", "d", "").selections == ()
    assert component_recipe("h", "d", "donor").selections == (Selection(("all",)),)
    both = component_recipe("h", "d", "router+experts")
    assert both.selections == (Selection(("router", "experts")),)
    with pytest.raises(RecipeError, match="unknown component 'gate'"):
        component_recipe("h", "d", "gate")


def test_rest_is_all_but_the_papers_components():
    everything = set(group_members("all", "attention"))
    assert "extra" not in everything
    rest = set(group_members("rest", "attention"))
    assert everything - rest == {"router", "attention", "experts", "qk_norm"}
    assert set(group_members("rest", "own")) == rest | {"qk_norm"}


def test_a_selection_reads_as_a_phrase():
    selection = Selection(("experts[0-7]", "router"), layers="8:16", rule="slerp", weight=0.5)
    assert str(selection) == "experts[0-7], router in layers 8:16, slerp 0.5"
