"""Whose run a directory is."""

import pytest

from moegraft.config import load_recipe
from moegraft.errors import RunError
from moegraft.evals.begun import forget_unbegun
from moegraft.evals.lock import writer_lock
from moegraft.sweep.design import SweepRecipe
from moegraft.sweep.record import claim_run, recipe_of_run

RECIPE = SweepRecipe("a", "b", preset="paper", conditions=("t",), limit=5)


def test_a_new_folder_gets_the_recipe_and_is_not_done(tmp_path):
    assert not claim_run(tmp_path, RECIPE)
    assert load_recipe(tmp_path / "recipe.yaml", SweepRecipe) == RECIPE


def test_the_same_recipe_continues_and_knows_when_it_is_done(tmp_path):
    claim_run(tmp_path, RECIPE)
    assert not claim_run(tmp_path, RECIPE)
    (tmp_path / "DONE").touch()
    assert not claim_run(tmp_path, RECIPE)  # env.json was taken away: it is written anew
    (tmp_path / "env.json").touch()
    assert claim_run(tmp_path, RECIPE)


def test_a_damaged_recipe_of_a_run_has_a_way_out(tmp_path):
    (tmp_path / "recipe.yaml").write_text("host: [")
    with pytest.raises(RunError, match="put the run's recipe back as it was, or choose another"):
        claim_run(tmp_path, RECIPE)


def test_a_larger_limit_reopens_a_finished_run(tmp_path):
    claim_run(tmp_path, RECIPE)
    (tmp_path / "DONE").touch()
    larger = SweepRecipe("a", "b", preset="paper", conditions=("t",), limit=9)
    assert not claim_run(tmp_path, larger)
    assert not (tmp_path / "DONE").exists()
    assert load_recipe(tmp_path / "recipe.yaml", SweepRecipe).limit == 9


def test_another_host_is_another_run(tmp_path):
    other = SweepRecipe("c", "b", preset="paper", conditions=("t",), limit=5)
    claim_run(tmp_path, other)
    claim_run(tmp_path, RECIPE)  # nothing was scored under the first one
    (tmp_path / "env.json").touch()
    with pytest.raises(RunError, match="host"):
        claim_run(tmp_path, other)


def test_a_run_that_never_began_leaves_nothing_but_what_was_there(tmp_path):
    run, mine = tmp_path / "run", tmp_path / "mine"
    (mine / "state").mkdir(parents=True)
    (mine / "state" / "ballot").touch()
    run.mkdir()
    for folder in (run, mine):
        with writer_lock(folder, (1, 1)):
            claim_run(folder, RECIPE)
            forget_unbegun(folder)
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        *("mine", "mine/state", "mine/state/ballot")
    ]
    run.mkdir()
    claim_run(run, RECIPE)
    (run / "items").mkdir()
    forget_unbegun(run)
    assert (run / "recipe.yaml").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match="is not empty and holds no run; choose another --out"):
        claim_run(tmp_path, RECIPE)
    assert [path.name for path in tmp_path.iterdir() if path.name != "state"] == ["thesis.tex"]


def test_a_run_of_another_command_is_told_apart(tmp_path):
    with pytest.raises(RunError, match=r"no recipe\.yaml found; expected a run directory of"):
        recipe_of_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text("models: {old: a, new: b}\nconditions: [t]\n")
    with pytest.raises(RunError, match="a run of `compare` or `gate`; expected a run directory"):
        recipe_of_run(tmp_path)
    (tmp_path / "recipe.yaml").unlink()
    claim_run(tmp_path, RECIPE)
    assert recipe_of_run(tmp_path) == RECIPE
