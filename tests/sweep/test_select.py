import importlib.util
from pathlib import Path

import numpy as np
import pytest

from moegraft.compare.weights import resolve_weights
from moegraft.config import load_recipe
from moegraft.errors import OutputError, RunError
from moegraft.report.items import read_run
from moegraft.sweep.select import (
    recipe_of_choice,
    select,
    told,
    weighted_choice,
    write_choice,
)
from moegraft.transfer.recipe import TransferRecipe

CONDITIONS = ("nano_math/cot", "nano_reading/0-shot", "nano_science/0-shot", "nano_science/5-shot")


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """A run whose donor's experts give 30 points in one condition, attention 15 in another."""
    path = tmp_path_factory.mktemp("runs") / "planted"
    _reports().write_run(path, num_items=400)
    text = (path / "recipe.yaml").read_text()
    (path / "recipe.yaml").write_text(f"host: host-dir\ndonor: donor-dir\n{text}")
    return path


@pytest.fixture(scope="module")
def asked(planted):
    """The table, and the choice for one condition."""
    return select(planted, condition="math")


def weighted(run, **weights):
    opened = read_run(run)
    names = {"math": "nano_math/cot", "science": "nano_science/0-shot"}
    shares = {names[name]: weight for name, weight in weights.items()}
    return weighted_choice(opened, resolve_weights(shares, opened.conditions))


def _reports():
    """The builder of synthetic runs that the tests of reports use."""
    where = Path(__file__).parent.parent / "report" / "conftest.py"
    spec = importlib.util.spec_from_file_location("synthetic_runs", where)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_names_what_was_planted_and_claims_nothing_else(asked):
    table = {entry["condition"]: entry for entry in asked["table"]}
    assert tuple(table) == CONDITIONS
    advised = {
        name: {part: one["source"] for part, one in entry["components"].items()}
        for name, entry in table.items()
    }
    nothing = {"router": "either", "attention": "either", "experts": "either"}
    assert advised["nano_math/cot"] == nothing | {"experts": "donor"}
    assert advised["nano_reading/0-shot"] == nothing
    assert advised["nano_science/0-shot"] == nothing | {"experts": "host"}
    assert advised["nano_science/5-shot"] == nothing | {"attention": "donor"}
    math = table["nano_math/cot"]
    assert "experts" in math["configuration"]
    assert math["against"]["host"]["p_holm"] < 0.001
    assert math["against"]["host"]["p_holm"] >= math["against"]["host"]["p"]
    assert math["num_choosing"] + math["num_confirming"] == 400
    assert not any(entry["exceeds"] for entry in table.values())  # the donor has it all too


def test_weights_decide_between_conditions_that_want_opposite_experts(planted):
    mostly_math = weighted(planted, math=9, science=1)
    mostly_science = weighted(planted, math=1, science=9)
    assert "experts" in mostly_math["configuration"]
    assert "experts" not in mostly_science["configuration"]
    assert mostly_math["against"]["host"]["difference"] > 0.15
    assert mostly_math["recommended"] == (
        mostly_math["configuration"] if mostly_math["exceeds"] else mostly_math["parent"]
    )
    low, high = mostly_math["against"]["host"]["interval"]
    assert low < mostly_math["against"]["host"]["difference"] < high
    assert told(mostly_math).startswith("weighted (nano_math/cot 0.90, nano_science/0-shot 0.10)")


def test_a_condition_that_weighs_alone_has_the_numbers_of_its_row_in_the_table(planted, asked):
    choice, row = weighted(planted, math=5), asked["choice"]
    for key in ("configuration", "score", "num_choosing", "num_confirming", "parent"):
        assert choice[key] == row[key]
    for name in ("host", "donor"):
        mine, theirs = choice["against"][name], row["against"][name]
        assert mine["difference"] == pytest.approx(theirs["difference"], abs=1e-12)
        assert mine["p"] == pytest.approx(theirs["p"], rel=0.2, abs=0.003)
        assert mine["interval"] == pytest.approx(theirs["interval"], abs=0.01)


def test_items_that_two_conditions_share_are_never_on_both_sides(tmp_path):
    reports = _reports()
    run = tmp_path / "run"
    for name in reports.CONFIGURATIONS:
        for condition in ("a/0-shot", "a/5-shot"):
            rows = [reports.row(f"i{k}", float(k % 2)) for k in range(40)]
            reports.write_cell(run, "items", name, condition, rows)
    (run / "recipe.yaml").write_text("limit: 40\nconditions: [a/0-shot, a/5-shot]\n")
    choice = weighted_choice(read_run(run), {"a/0-shot": 0.5, "a/5-shot": 0.5})
    assert (choice["num_choosing"], choice["num_confirming"]) == (40, 40)
    assert choice["configuration"] == "router"  # the first of equals, which moves least
    assert choice["against"]["host"] == {
        "difference": 0.0,
        "interval": [0.0, 0.0],
        "p": 1.0,
        "p_holm": None,
    }
    assert not choice["exceeds"]


def test_the_written_recipe_is_a_transfer_recipe_with_its_evidence(planted, asked, tmp_path):
    choice = asked["choice"]
    path = tmp_path / "recipe.yaml"
    write_choice(path, recipe_of_choice(planted, choice["configuration"]), choice)
    made = load_recipe(path, TransferRecipe)
    assert (made.host, made.donors) == ("host-dir", {"donor": "donor-dir"})
    assert made.selections[0].components == tuple(choice["configuration"].split("+"))
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert "from the donor, all else from the host" in comments[0]
    assert f"is not established: ship the {choice['parent']}" in comments[1]
    assert choice["recommended"] == choice["parent"]
    assert comments[2] == "# moegraft transfer recipe.yaml --out DIR"
    with pytest.raises(OutputError, match="exists; choose another --out"):
        write_choice(path, made, choice)


def test_imported_results_need_the_checkpoints_to_be_named(planted, tmp_path):
    with pytest.raises(RunError, match="no configuration 'mlp'"):
        recipe_of_choice(planted, "mlp")
    reports = _reports()
    for name in ("host", "donor", "experts"):
        rows = [reports.row(f"i{k}", 1.0) for k in range(30)]
        reports.write_cell(tmp_path, "items", name, "c", rows)
    with pytest.raises(RunError, match="names no host and donor; say --host A --donor B"):
        recipe_of_choice(tmp_path, "experts")
    made = recipe_of_choice(tmp_path, "experts", host="A", donor="B")
    assert (made.host, made.donors) == ("A", {"donor": "B"})


def test_a_run_without_compositions_says_so(tmp_path):
    reports = _reports()
    for name in ("host", "donor"):
        rows = [reports.row(f"i{k}", 1.0) for k in range(30)]
        reports.write_cell(tmp_path, "items", name, "c", rows)
    with pytest.raises(RunError, match="c: nothing to choose from; expected host, donor"):
        select(tmp_path, condition="c")
    with pytest.raises(RunError, match="nothing to choose from"):
        select(tmp_path, weights={"c": 1})


@pytest.mark.slow
def test_equal_compositions_are_rarely_said_to_exceed_when_weighted():
    """Family-wise error of `exceeds` where nothing differs: at most 5 %, see also winners."""
    from moegraft.sweep.select import _Pooled

    rng, hits, runs = np.random.default_rng(0), 0, 400
    names = ("host", "donor", *(f"c{k}" for k in range(7)))
    for _ in range(runs):
        ease = rng.random(400)
        scores = {n: (rng.random(400) < 0.5 * ease + 0.25).astype(float) for n in names}
        items = tuple(f"{rng.integers(1 << 60):x}" for _ in range(400))
        pooled = _Pooled(names, items, (None,) * 400, ("a",) * 400, {"a": 1.0}, scores)
        first, second = np.arange(200), np.arange(200, 400)
        best = max(names[2:], key=lambda name: pooled.mean(name, first))
        tests = [pooled.test(best, parent, second, 0) for parent in ("host", "donor")]
        hits += all(value > 0 and p < 0.05 for value, _, p in tests)
    assert hits / runs <= 0.05
